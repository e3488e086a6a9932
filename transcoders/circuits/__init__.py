"""Which latents of several layers bring a prediction about: attribution graphs (evaluation: circuits).

After Ameisen et al. 2025, "Circuit Tracing", and Dunefsky et al. 2024, arXiv 2406.11944. ``trace`` is the door to
graphs, ``intervene`` that to what the model does with latents set, scaled or ablated.
"""

from typing import Any

__all__ = ["intervene", "trace"]


def __getattr__(name: str) -> Any:
    """Load a door on first use: settings of this room must not cost what tracing needs."""
    if name == "trace":
        from transcoders.circuits.suite import trace

        return trace
    if name == "intervene":
        from transcoders.circuits.steering import intervene

        return intervene
    raise AttributeError(f"module 'transcoders.circuits' has no attribute {name!r}")
