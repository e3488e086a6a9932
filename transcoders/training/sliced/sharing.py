"""What needs all latents, where each process of a team holds a slice of every group of them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transcoders.dictionary.config import PER_LATENT, TranscoderConfig, kind_of
from transcoders.dictionary.dictionary import Config, Dictionary
from transcoders.dictionary.transcoder import Transcoder
from transcoders.distributed.ranks import Ranks
from transcoders.kernels import SparseLatents, SquaredErrors
from transcoders.kernels.crosslayer import decode_nested_sources
from transcoders.training.sharing import Owners, Sharing
from transcoders.training.sliced.assemble import save_all_slices, write_slice_by_slice
from transcoders.training.sliced.selection import among_largest
from transcoders.training.sliced.transcoder import SlicedTranscoder, sliced


class Slices(Sharing):
    """Answer for latents that lie on the processes ``ranks.latents``, which must all make the same calls."""

    def __init__(self, ranks: Ranks) -> None:
        """Share a dictionary with the other processes of ``ranks.latents``."""
        self._ranks, self._team = ranks, ranks.latents
        self.processes = self._team.size

    def model(self, config: Config) -> Dictionary:
        """Make this process's slice of the dictionary of ``config``."""
        return sliced(config, self._team)

    def config(self, model: Dictionary) -> TranscoderConfig:
        """Return the config of all latents of each source together."""
        return _slice(model).full_config

    def rows(self, model: Dictionary, rows: Tensor) -> Tensor:
        """Return, of a row for each of all latents, those of ``model``'s."""
        return _slice(model).rows_here(rows)

    def summed(self, value: Tensor) -> Tensor:
        """Return the sum over the slices, through which gradients pass."""
        return self._team.summed(value)

    def sum_(self, value: Tensor) -> Tensor:
        """Replace ``value`` by its sum over the slices."""
        return self._team.sum_(value)

    def min_(self, value: Tensor) -> Tensor:
        """Replace ``value`` by its least over the slices."""
        return self._team.min_(value)

    def total(self, number: int, device: torch.device) -> int:
        """Return the sum of a number over the slices."""
        return self._team.total(number, device)

    def squared_errors(
        self, model: Dictionary, latents: Sequence[SparseLatents], target: Tensor, sizes: tuple[int, ...]
    ) -> SquaredErrors:
        """Decode this process's latents, and return the errors of what all decode together."""
        counts = [_slice(model).below(size) for size in sizes]
        distinct = tuple(sorted(set(counts) - {0}))
        decoded = decode_nested_sources(model.written(latents), model.width, distinct)
        nothing = torch.zeros_like(target)
        parts = [decoded[distinct.index(count)] if count else nothing for count in counts]
        residuals = target - self._team.summed(torch.stack(parts))
        return SquaredErrors(residuals.square().mean((1, 2)), residuals[-1].detach())

    def auxk(
        self,
        model: Transcoder,
        x: Float[Tensor, "tokens d_in"],
        residual: Float[Tensor, "tokens d_out"],
        dead: Int[Tensor, "dead"],
        variance: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """Return AuxK of all dead latents; ``dead`` are those that lie here, of which there may be none."""
        team = self._team
        k = min(model.config.d_in // 2, team.total(len(dead), x.device))
        if k == 0:
            return residual.new_zeros(())
        pre = torch.addmm(model.b_enc[dead], x, model.W_enc[dead].T)
        best = pre.detach().topk(min(k, len(dead)))
        candidates = best.values.new_full((len(x), k), -torch.inf)
        candidates[:, : best.values.shape[1]] = best.values
        mask = among_largest(candidates, team)[:, : best.indices.shape[1]]
        z = (pre * torch.zeros_like(pre).scatter_(1, best.indices, mask.to(pre.dtype))).relu()
        reconstruction = team.summed((z @ model.W_dec[dead].to(z.dtype)).to(residual.dtype))
        return (residual - reconstruction).square().mean() / variance

    def decoder_rows(self, model: Transcoder, latents: Int[Tensor, "rows"]) -> Float[Tensor, "rows d_out"]:
        """Return the decoder's rows of ``latents``, numbered over all slices, on every process."""
        count = self.config(model).d_hidden
        here = self.rows(model, torch.arange(count, device=latents.device))
        place = torch.full((count,), -1, device=latents.device)
        place[here] = torch.arange(len(here), device=latents.device)
        rows = model.W_dec[place[latents].clamp(min=0)]
        return self._team.summed(torch.where(place[latents, None] >= 0, rows, 0.0))

    def save_model(self, model: Dictionary, folder: Path) -> None:
        """Write the dictionary of all latents into ``folder``, one slice at a time."""
        if self._ranks.data.rank == 0:
            save_all_slices(model, _slice(model), folder, first=self._ranks.first)

    def save(self, path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], owners: Owners) -> None:
        """Write ``tensors``, one slice at a time; those named after weights or counts of latents come from all."""
        if self._ranks.data.rank == 0:
            here = path if self._ranks.first else None
            of_latents = {name: _slice(owners[name]) for name in tensors if _has_rows(name)}
            write_slice_by_slice(here, tensors, of_latents, self._team, metadata)

    def here(self, name: str, tensor: Tensor, owner: Dictionary) -> Tensor:
        """Return what lies here of the tensor ``name`` that ``save`` wrote."""
        return self.rows(owner, tensor) if _has_rows(name) else tensor


def _has_rows(name: str) -> bool:
    """Say whether a checkpoint's tensor of this name has a row for each latent."""
    return kind_of(name) in (*PER_LATENT, "since_fired")


def _slice(model: Dictionary) -> SlicedTranscoder:
    """Return the first source, as whose the latents of all are divided."""
    source = model.sources[0]
    assert isinstance(source, SlicedTranscoder), "a model that Slices.model made"
    return source
