"""Where the latents of a dictionary lie, as training sees it: here all of them, or (``sliced``) a slice of each group.

The objective, the optimiser and checkpoints ask this one object for what needs all latents.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transcoders import kernels
from transcoders.core.tensors import save_tensors
from transcoders.dictionary import dictionary
from transcoders.dictionary.dictionary import Config, Dictionary
from transcoders.dictionary.transcoder import Transcoder
from transcoders.kernels import SparseLatents, SquaredErrors
from transcoders.kernels.crosslayer import squared_errors_of_sources

Owners = Mapping[str, Dictionary]
"""Name of a tensor -> the model, or the part of one, whose latents its rows are if it has a row for each."""


class Processes(Protocol):
    """Describe what training asks of the processes that divide its tokens or latents."""

    @property
    def size(self) -> int:
        """Return the number of processes."""

    def share(self, count: int) -> slice:
        """Return this process's part of ``count`` consecutive things."""

    def sum_(self, value: Tensor) -> Tensor:
        """Replace ``value`` by its sum over the processes."""

    def total(self, number: int, device: torch.device) -> int:
        """Return the sum of a number over the processes."""

    def kth_largest(self, values: Float[Tensor, "here"], k: int) -> Float[Tensor, ""]:
        """Return the k-th largest of the non-negative ``values`` of all processes."""


class Sharing:
    """Answer for latents that all lie here: nothing needs to be asked of other processes."""

    processes = 1

    def model(self, config: Config) -> Dictionary:
        """Make the dictionary of ``config``, as far as it lies here, with zero weights."""
        return dictionary.dictionary_of(config)

    def config(self, model: Dictionary) -> Config:
        """Return the config of all latents together, ``model`` being what lies here of them."""
        return model.config

    def rows(self, model: Transcoder, rows: Tensor) -> Tensor:
        """Return, of a row for each of all latents, those of ``model``'s."""
        return rows

    def summed(self, value: Tensor) -> Tensor:
        """Return the sum over the slices, through which gradients pass."""
        return value

    def sum_(self, value: Tensor) -> Tensor:
        """Replace ``value`` by its sum over the slices."""
        return value

    def min_(self, value: Tensor) -> Tensor:
        """Replace ``value`` by its least over the slices."""
        return value

    def total(self, number: int, device: torch.device) -> int:
        """Return the sum of a number over the slices."""
        return number

    def squared_errors(
        self, model: Dictionary, latents: Sequence[SparseLatents], target: Tensor, sizes: tuple[int, ...]
    ) -> SquaredErrors:
        """Return the mean squared error of each prefix's reconstruction from each source's latents.

        ``sizes`` are of all latents of a source.
        """
        return squared_errors_of_sources(model.written(latents), target, sizes)

    def auxk(
        self,
        model: Transcoder,
        x: Float[Tensor, "tokens d_in"],
        residual: Float[Tensor, "tokens d_out"],
        dead: Int[Tensor, "dead"],
        variance: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """Return AuxK of the ``dead`` latents, ``variance`` being that of the full batch's residual."""
        k_aux = min(model.config.d_in // 2, len(dead))
        weights = (model.W_enc, model.b_enc, model.W_dec)
        return kernels.auxk(x, residual, *weights, dead, k_aux, variance=variance)

    def decoder_rows(self, model: Transcoder, latents: Int[Tensor, "rows"]) -> Float[Tensor, "rows d_out"]:
        """Return the decoder's rows of ``latents``, numbered over all slices."""
        return model.W_dec[latents]

    def save_model(self, model: Dictionary, folder: Path) -> None:
        """Write the transcoder of all latents into ``folder``."""
        dictionary.save(model, folder)

    def save(self, path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], owners: Owners) -> None:
        """Write named ``tensors`` of all latents to ``path``, or nothing."""
        save_tensors(path, tensors, metadata)

    def here(self, name: str, tensor: Tensor, owner: Dictionary) -> Tensor:
        """Return what lies here of the tensor ``name`` that ``save`` wrote."""
        return tensor


HERE = Sharing()
