"""Means of stored arrays, added up chunk by chunk in one order, so that they do not depend on who wrote what."""

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from transcoders.activations import store


class Moments(NamedTuple):
    """Hold sums, in double, of the rows of one chunk of an array, or of several, and of their squares."""

    total: Float[Tensor, "d"]
    square: float


def chunk_moments(
    name: str, arrays: Mapping[str, np.ndarray], rows: Bool[Tensor, "rows"] | None = None
) -> list[Moments]:
    """Return the moments of each chunk of array ``name``, as it will be read; of ``rows`` alone, if given."""
    parts = [part for part in (name, name + store.SCALE) if part in arrays]
    moments = []
    for start in range(0, len(arrays[name]), store.CHUNK_ROWS):
        here = slice(start, start + store.CHUNK_ROWS)
        exact = store.from_storage(name, {part: arrays[part][here] for part in parts}).double()
        exact = exact if rows is None else exact[rows[here]]
        moments.append(Moments(exact.sum(0), float(exact.square().sum())))
    return moments


def statistics(name: str, chunks: Iterable[Moments], rows: int) -> dict[str, Any]:
    """Return the attributes of array ``name`` with ``rows`` rows, from its chunks in order."""
    total, square = reduce(lambda a, b: Moments(a.total + b.total, a.square + b.square), chunks)
    return {f"{name}_mean": (total / rows).tolist(), f"{name}_mean_square": square / rows}
