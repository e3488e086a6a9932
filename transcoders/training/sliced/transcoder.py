"""A dictionary whose latents lie on several ranks, so that it may be larger than a device.

Each rank holds a slice of every group of latents. Tokens are the same on all of them. Encoding is local
except for the choice of the k largest; decoding is a sum over ranks.
"""

from pathlib import Path

import torch
from torch import Tensor

from transcoders import kernels
from transcoders.core.errors import UserError
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.crosslayer.config import CrossLayerConfig
from transcoders.dictionary.crosslayer.transcoder import CrossLayerTranscoder
from transcoders.dictionary.dictionary import Config, Dictionary
from transcoders.dictionary.encoders import ENCODERS, GroupMax
from transcoders.dictionary.transcoder import Transcoder
from transcoders.distributed.ranks import Team
from transcoders.kernels import SparseLatents
from transcoders.training.sliced.selection import among_largest


class SlicedTranscoder(Transcoder):
    """Hold one rank's latents of the transcoder that ``full_config`` describes.

    ``config`` is that of the slice: fewer latents, the same k. All ranks of ``team`` must make the same calls.
    """

    def __init__(self, full_config: TranscoderConfig, team: Team) -> None:
        """Allocate this rank's zero weights.

        Raises:
            UserError: a slice would have too few latents.
        """
        shares = [stop - start for start, stop in slices(full_config, team.rank, team.size)]
        indivisible = isinstance(ENCODERS[full_config.encoder], GroupMax)  # its sets of latents cannot be cut
        for g in full_config.groups:
            if (g.stop - g.start) // team.size < g.k or (indivisible and g.k % team.size):
                raise UserError(
                    f"distributed.latents: {team.size} slices of latents {g.start} to {g.stop} are too small for "
                    f"their k = {g.k} ({full_config.encoder}); take fewer slices"
                )
        ends = torch.tensor(shares).cumsum(0).tolist()
        super().__init__(
            full_config.model_copy(
                update={"d_hidden": ends[-1], "prefixes": tuple(ends) if full_config.prefixes else ()}
            )
        )
        self.full_config, self.team = full_config, team

    def rows_here(self, rows: Tensor) -> Tensor:
        """Return, of a row for each of all latents, this rank's."""
        return torch.cat([rows[start:stop] for start, stop in slices(self.full_config, self.team.rank, self.team.size)])

    def below(self, prefix: int) -> int:
        """Count those of the first ``prefix`` latents that are this rank's."""
        here = slices(self.full_config, self.team.rank, self.team.size)
        return sum(max(0, min(stop, prefix) - start) for start, stop in here)

    def winners(self, x: Tensor) -> SparseLatents:
        """Return the winners of this rank's sets of latents: it has all rivals of each."""
        size = self.team.size
        return kernels.concatenate([kernels.groupmax_encode(x, W, b, k // size) for W, b, k in self.group_weights()])

    def largest(self, x: Tensor) -> SparseLatents:
        """Return this rank's of the k largest latents of each group on each token."""
        chosen = []
        for W, b, k in self.group_weights():
            candidates = kernels.topk_encode(x, W, b, k)
            mask = among_largest(candidates.values.view(len(x), k), self.team)
            chosen.append(kernels.select_entries(candidates, mask.flatten()))
        return kernels.concatenate(chosen)

    def over_slices(self, value: Tensor) -> Tensor:
        """Return the sum of ``value`` over all ranks."""
        return self.team.summed(value)

    def decode_latents(self, latents: SparseLatents) -> Tensor:
        """Return ``z W_dec`` of all ranks."""
        return self.over_slices(super().decode_latents(latents))

    def _empty(self, start: int, stop: int) -> "SlicedTranscoder":
        local, full = ((0, *(c.prefixes or (c.d_hidden,))) for c in (self.config, self.full_config))
        if start not in local or stop not in local:
            raise ValueError(f"latents {start} to {stop}: a slice divides only at {local[1:]}")
        part = self.full_config.of_part(full[local.index(start)], full[local.index(stop)])
        return SlicedTranscoder(part, self.team)

    def save(self, folder: Path | str) -> None:
        """Refuse, for ``assemble.save_all_slices`` writes the slices together."""
        raise NotImplementedError(f"{folder}: a slice of a transcoder is not saved by itself")


def sliced(config: Config, team: Team) -> Dictionary:
    """Return this rank's slice of a dictionary with zero weights; of a cross-layer one, of each layer's latents.

    Raises:
        UserError: a slice would have too few latents, or latents are chosen over layers.
    """
    if not isinstance(config, CrossLayerConfig):
        return SlicedTranscoder(config, team)
    if config.budget == "token":
        raise UserError("distributed.latents: slices do not go with budget: token; set it to 1, or take budget: layer")
    sources = [SlicedTranscoder(config.source(number), team) for number in range(len(config.layers))]
    here = {name: getattr(sources[0].config, name) for name in ("d_hidden", "prefixes")}
    return CrossLayerTranscoder(config.model_copy(update=here), sources)


def slices(full_config: TranscoderConfig, rank: int, size: int) -> list[tuple[int, int]]:
    """Return which latents [start, stop) of each group ``rank`` holds, in order."""
    return [
        (g.start + (g.stop - g.start) * rank // size, g.start + (g.stop - g.start) * (rank + 1) // size)
        for g in full_config.groups
    ]
