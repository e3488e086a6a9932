"""Tokens whose x or y is far longer than others' (a few of Qwen's are): found once all norms are stored."""

from typing import Any, NamedTuple

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

from transcoders.activations import store
from transcoders.activations.moments import Moments, chunk_moments


class Inside(NamedTuple):
    """Hold the rows of a store that readers will see."""

    limits: list[float]
    """Norms of x and of y above which a row is left out."""
    inside: NDArray[np.bool_]
    moments: dict[str, list[Moments]]
    """Of these rows alone, chunk by chunk."""


def within_limits(root: zarr.Group, rows: int, max_norm: float) -> Inside:
    """Find the rows of the written store ``root`` whose norms are at most ``max_norm`` times the medians."""

    def read(name: str, part: slice) -> NDArray[Any]:
        array = root[name]
        assert isinstance(array, zarr.Array)
        return np.asarray(array[part])

    norms = [read(name + store.NORM, slice(rows)) for name in store.ACTIVATIONS]
    limits = [float(np.median(values)) * max_norm for values in norms]
    inside = np.logical_and(*(values <= limit for values, limit in zip(norms, limits, strict=True)))
    moments: dict[str, list[Moments]] = {name: [] for name in store.ACTIVATIONS}
    for start in range(0, rows, store.CHUNK_ROWS):
        part = slice(start, min(start + store.CHUNK_ROWS, rows))
        for name, chunks in moments.items():
            names = [held for held in (name, name + store.SCALE) if held in root]
            arrays = {held: read(held, part) for held in names}
            chunks += chunk_moments(name, arrays, torch.from_numpy(inside[part]))
    return Inside(limits, inside, moments)
