"""What, besides its weights, defines a transcoder."""

from itertools import pairwise
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from transcoders.core.settings import Settings
from transcoders.dictionary.names import EncoderName
from transcoders.kernels import Group

PER_LATENT = ("W_enc", "b_enc", "W_dec", "threshold")
"""Weights with a row for each latent."""


def kind_of(parameter: str) -> str:
    """Return which weight a parameter is, of whichever source: the last part of its name."""
    return parameter.rpartition(".")[2]


class TranscoderConfig(Settings):
    """Describe the kind, sizes, units and provenance of a transcoder."""

    encoder: EncoderName = "topk"
    d_in: int = Field(gt=0)
    d_out: int = Field(gt=0)
    d_hidden: int = Field(gt=0)
    k: int = Field(gt=0)
    """Active latents per token: exactly with topk, on average with the others."""
    prefixes: tuple[int, ...] = Field(default=(), strict=False)
    """Sizes of the valid smaller transcoders in a nested one, ascending, d_hidden last."""
    prefix_k: tuple[int, ...] = Field(default=(), strict=False)
    """Active latents within each prefix: each group of latents chooses its own share of k."""
    skip: bool = False
    input_scale: float = Field(default=1.0, gt=0)
    """The weights expect ``x / input_scale``: mean squared length d_in on the training tokens."""
    output_scale: float = Field(default=1.0, gt=0)
    """The weights produce ``y / output_scale``."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    """Layer, hook names, base model and its hash, split, seed, training parameters."""

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if self.k > self.d_hidden:
            raise ValueError(f"k = {self.k} is more than d_hidden = {self.d_hidden}")
        if self.prefixes and (self.prefixes[-1] != self.d_hidden or not _ascends(self.prefixes)):
            raise ValueError(f"prefixes {self.prefixes} do not ascend to d_hidden = {self.d_hidden}")
        if len(self.prefix_k) != len(self.prefixes) or (self.prefix_k and self.prefix_k[-1] != self.k):
            raise ValueError(f"prefix_k {self.prefix_k} must give k of every prefix, {self.k} for the last")
        for group in self.groups:
            if not 0 < group.k <= group.stop - group.start:
                raise ValueError(
                    f"latents {group.start} to {group.stop} would have k = {group.k}: "
                    "prefix_k must rise at every prefix, by no more than the latents it adds"
                )
        return self

    @property
    def groups(self) -> tuple[Group, ...]:
        """Return the latents that each prefix adds, or all as one group."""
        if not self.prefixes:
            return (Group(0, self.d_hidden, self.k),)
        sizes, ks = (0, *self.prefixes), (0, *self.prefix_k)
        return tuple(Group(a, b, j - i) for (a, b), (i, j) in zip(pairwise(sizes), pairwise(ks), strict=True))

    def of_part(self, start: int, stop: int) -> "TranscoderConfig":
        """Return the config of the groups within latents [start, stop).

        Raises:
            ValueError: ``start`` or ``stop`` is not 0 or a prefix.
        """
        borders = (0, *(self.prefixes or (self.d_hidden,)))
        if start not in borders or stop not in borders or start >= stop:
            raise ValueError(f"latents {start} to {stop}: a transcoder divides only at its prefixes {borders[1:]}")
        groups = [group for group in self.groups if start <= group.start and group.stop <= stop]
        ks = np.cumsum([group.k for group in groups]).tolist()
        changes = {"d_hidden": stop - start, "k": ks[-1], "skip": self.skip and start == 0}
        prefixes = tuple(group.stop - start for group in groups) if self.prefixes else ()
        return self.model_copy(update={**changes, "prefixes": prefixes, "prefix_k": tuple(ks) if prefixes else ()})


def _ascends(sizes: tuple[int, ...]) -> bool:
    return all(a < b for a, b in pairwise((0, *sizes)))
