"""The sparse step on CUDA, in Triton."""
