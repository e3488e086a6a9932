"""Which latents of several layers bring a prediction about: attribution graphs (evaluation: circuits).

After Ameisen et al. 2025, "Circuit Tracing", and Dunefsky et al. 2024, arXiv 2406.11944.
"""
