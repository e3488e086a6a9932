"""Bounded memory of an endless stream: of each latent the best few, and how its activations spread."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BINS = 32


class Admitted(NamedTuple):
    """Hold the candidates that got a place."""

    candidate: NDArray[np.int64]
    latent: NDArray[np.int64]
    slot: NDArray[np.int64]


class Keeper:
    """Keep, for each latent, the ``size`` candidates with the largest keys, and what was filed with them.

    With activations as keys these are the top ones; with random keys, a uniform sample.
    """

    def __init__(self, latents: int, size: int, **fields: tuple[tuple[int, ...], Any, Any]) -> None:
        """Make room for ``fields``: name -> (shape of one entry, dtype, value of an empty slot)."""
        self.key = np.full((latents, size), -np.inf)
        self.fields = {name: np.full((latents, size, *shape), empty, t) for name, (shape, t, empty) in fields.items()}

    def offer(self, latent: NDArray[np.int64], key: NDArray[np.float64]) -> Admitted:
        """Give places to the candidates that deserve one; the caller then files their fields."""
        good = np.flatnonzero(key > self.key.min(1)[latent])
        good = good[np.lexsort((-key[good], latent[good]))]
        owner = latent[good]
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        rank = np.arange(len(owner)) - np.repeat(starts, np.diff(starts, append=len(owner)))
        admitted = [(good[:0], owner[:0], owner[:0])]
        # Rank by rank, best first: who is admitted is never evicted by a later one of this call.
        for turn in range(self.key.shape[1]):
            ours = good[rank == turn]
            if not len(ours):
                break
            rows = latent[ours]
            slot = self.key[rows].argmin(1)
            better = key[ours] > self.key[rows, slot]
            ours, rows, slot = ours[better], rows[better], slot[better]
            self.key[rows, slot] = key[ours]
            admitted.append((ours, rows, slot))
        return Admitted(*(np.concatenate(parts) for parts in zip(*admitted, strict=True)))

    def file(self, admitted: Admitted, **values: NDArray[Any]) -> None:
        """Store the fields of admitted candidates, in their order."""
        for name, value in values.items():
            self.fields[name][admitted.latent, admitted.slot] = value

    def of(self, latent: int) -> NDArray[np.int64]:
        """Return the filled slots of ``latent``, largest key first."""
        filled = np.flatnonzero(np.isfinite(self.key[latent]))
        return filled[np.argsort(-self.key[latent][filled], kind="stable")]


class Histograms:
    """Count each latent's values in bins from 0 to ``width * BINS``; the width doubles when one lies beyond."""

    def __init__(self, latents: int, width: float = 2.0**-12) -> None:
        self.counts = np.zeros((latents, BINS), np.int64)
        self.width = np.full(latents, width)

    def add(self, latent: NDArray[np.int64], value: NDArray[np.float32], largest: NDArray[np.float64]) -> None:
        """Count activations; ``largest`` is that of each latent so far."""
        while (small := np.flatnonzero(largest >= self.width * BINS)).size:
            halves = self.counts[small].reshape(len(small), BINS // 2, 2).sum(2)
            self.counts[small] = np.concatenate([halves, np.zeros_like(halves)], 1)
            self.width[small] *= 2
        place = latent * BINS + (value / self.width[latent]).astype(np.int64)
        self.counts += np.bincount(place, minlength=self.counts.size).reshape(self.counts.shape)
