"""Adam in one pass over memory: a reference, and loops for CPU and CUDA."""
