"""Adam in one pass over memory: a reference, and loops for CPU and CUDA.

torch's fused Adam, with the projection and normalisation of the decoder beside it, makes a step on CPU 1.09 to 1.29
times as long; the reference's formula 1.33 to 1.82 times (docs/benchmarks.md).
"""
