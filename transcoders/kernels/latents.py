"""The sparse latents that every kernel produces and consumes, and the checks on kernel arguments."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad


class Group(NamedTuple):
    """Describe consecutive latents [start, stop), of which each token has k active."""

    start: int
    stop: int
    k: int


class SparseLatents(NamedTuple):
    """Hold the latents of a batch as CSR: row `t` has the active latents of token `t`, ids ascending.

    `topk` and its approximations give exactly `k` entries per row; `batchtopk` and `threshold`
    give ragged rows. A stored value may be 0: TopK can select a negative pre-activation, which the
    relu then zeroes (arXiv 2406.04093, section 2.3). Count `values > 0` for an L0.
    """

    offsets: Int[Tensor, "tokens_plus_1"]
    indices: Int[Tensor, "nnz"]
    values: Float[Tensor, "nnz"]
    d_hidden: int

    @property
    def tokens(self) -> int:
        return self.offsets.shape[0] - 1

    def rows(self) -> Int[Tensor, "nnz"]:
        """Return the token that each entry belongs to."""
        tokens = torch.arange(self.tokens, device=self.offsets.device)
        # output_size spares CUDA a synchronisation.
        return tokens.repeat_interleave(self.offsets.diff(), output_size=self.indices.shape[0])

    def dense(self) -> Float[Tensor, "tokens d_hidden"]:
        """Return the same latents as a dense matrix; differentiable in `values`."""
        dense = self.values.new_zeros(self.tokens, self.d_hidden)
        return dense.index_put((self.rows(), self.indices.long()), self.values)


class Source(NamedTuple):
    """Hold latents, and the decoder with which they write to the columns from ``first`` on."""

    latents: SparseLatents
    W_dec: Float[Tensor, "d_hidden width"]
    first: int

    @property
    def columns(self) -> slice:
        """Return the columns that the latents write to."""
        return slice(self.first, self.first + self.W_dec.shape[1])


class SquaredErrors(NamedTuple):
    """Hold what `squared_errors` returns."""

    errors: Float[Tensor, "prefixes"]
    """Mean squared error over tokens and dimensions of each prefix's reconstruction."""
    residual: Float[Tensor, "tokens d_out"]
    """`target − reconstruction` of the last prefix, without a gradient (AuxK's target)."""


def from_fixed_k(indices: Int[Tensor, "tokens k"], values: Float[Tensor, "tokens k"], d_hidden: int) -> SparseLatents:
    """Return rows of exactly `k` entries (ids already ascending) as `SparseLatents`."""
    return SparseLatents(fixed_offsets(indices), indices.reshape(-1), values.reshape(-1), d_hidden)


def fixed_offsets(indices: Int[Tensor, "tokens k"]) -> Int[Tensor, "tokens_plus_1"]:
    """Return where each row of exactly `k` entries begins, and where the last ends."""
    tokens, k = indices.shape
    return torch.arange(0, tokens * k + 1, k, device=indices.device)


def offsets_of(counts: Int[Tensor, "n"] | Bool[Tensor, "n"]) -> Int[Tensor, "n_plus_1"]:
    """Return where each of consecutive runs of ``counts`` entries begins, and where the last ends."""
    return pad(counts.cumsum(0), (1, 0))


def concatenate(groups: Sequence[SparseLatents]) -> SparseLatents:
    """Return the latents of the same tokens side by side: the ids of each group follow those of the one before."""
    if len(groups) == 1:
        return groups[0]
    counts = torch.stack([group.offsets.diff() for group in groups])
    offsets = torch.stack([group.offsets for group in groups]).sum(0)
    begins = offsets[:-1] + counts.cumsum(0) - counts  # of each group's part of each row
    places, indices, start = [], [], 0
    for group, count, begin in zip(groups, counts, begins, strict=True):
        entries = len(group.indices)
        shift = (begin - group.offsets[:-1]).repeat_interleave(count, output_size=entries)
        places.append(shift + torch.arange(entries, device=shift.device))
        indices.append(group.indices + start)
        start += group.d_hidden
    place = torch.cat(places)
    ids, values = torch.cat(indices), torch.cat([group.values for group in groups])
    ids, values = (torch.empty_like(part).index_copy(0, place, part) for part in (ids, values))
    return SparseLatents(offsets, ids, values, start)


def truncate(latents: SparseLatents, prefix: int) -> SparseLatents:
    """Return only the entries of latents below `prefix`."""
    return latents if prefix == latents.d_hidden else between(latents, 0, prefix)


def between(latents: SparseLatents, start: int, stop: int) -> SparseLatents:
    """Return only the entries of latents [start, stop), under their ids."""
    return select_entries(latents, (latents.indices >= start) & (latents.indices < stop))


def select_entries(latents: SparseLatents, mask: Bool[Tensor, "nnz"]) -> SparseLatents:
    """Return only the entries that `mask` marks, under their ids; differentiable in the values."""
    offsets = offsets_of(mask)[latents.offsets]
    return SparseLatents(offsets, latents.indices[mask], latents.values[mask], latents.d_hidden)


def splits_of(
    offsets: Int[Tensor, "tokens_plus_1"], indices: Int[Tensor, "nnz"], prefixes: tuple[int, ...]
) -> Int[Tensor, "tokens groups_plus_1"]:
    """Return where each group of each token begins: ids ascend in a row, so its groups are consecutive.

    The last prefix must cover all entries.
    """
    borders = [offsets[:-1]]
    for size in prefixes[:-1]:
        borders.append(offsets[:-1] + offsets_of(indices < size)[offsets].diff())
    return torch.stack([*borders, offsets[1:]], 1)


def check_encoder(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int | None = None) -> None:
    """Raise ValueError when encoder arguments do not fit together."""
    if x.ndim != 2 or W_enc.ndim != 2 or x.shape[1] != W_enc.shape[1]:
        raise ValueError(
            f"x is {_shape(x)} and W_enc is {_shape(W_enc)}: "
            "expected x [tokens, d_in] and W_enc [d_hidden, d_in] with the same d_in"
        )
    d_hidden = W_enc.shape[0]
    if b_enc.shape != (d_hidden,):
        raise ValueError(f"b_enc is {_shape(b_enc)}: expected [{d_hidden}], one per row of W_enc")
    if k is not None and not 1 <= k <= d_hidden:
        raise ValueError(f"k = {k} is not within 1..d_hidden = {d_hidden}: lower k or widen W_enc")
    _same_device(x=x, W_enc=W_enc, b_enc=b_enc)


def check_groups(groups: Sequence[Group], d_hidden: int) -> None:
    """Raise ValueError unless groups follow one another from 0 to d_hidden and have their k latents."""
    if [*(group.start for group in groups), d_hidden] != [0, *(group.stop for group in groups)]:
        raise ValueError(f"groups {list(map(tuple, groups))} do not divide 0..d_hidden = {d_hidden}")
    for start, stop, k in groups:
        if not 1 <= k <= stop - start:
            raise ValueError(f"k = {k} of the latents {start} to {stop}: expected within 1..{stop - start}")


def check_decoder(latents: SparseLatents, W_dec: Tensor) -> None:
    """Raise ValueError when the decoder does not fit the latents."""
    if W_dec.ndim != 2 or W_dec.shape[0] != latents.d_hidden:
        raise ValueError(
            f"W_dec is {_shape(W_dec)}: expected [d_hidden = {latents.d_hidden}, d_out], "
            "rows being decoder directions (transpose it if it is [d_out, d_hidden])"
        )
    _same_device(values=latents.values, W_dec=W_dec)


def check_prefixes(prefixes: tuple[int, ...], d_hidden: int) -> None:
    """Raise ValueError unless prefixes rise strictly within 1..d_hidden."""
    rising = all(a < b for a, b in zip((0, *prefixes), prefixes, strict=False))
    if not prefixes or not rising or prefixes[-1] > d_hidden:
        raise ValueError(f"prefixes = {prefixes}: expected strictly rising sizes within 1..d_hidden = {d_hidden}")


def _same_device(**tensors: Tensor) -> None:
    devices = {name: str(tensor.device) for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        raise ValueError(f"tensors are on different devices, move them to one: {devices}")


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
