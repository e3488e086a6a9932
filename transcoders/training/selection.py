"""The largest of numbers that lie on many ranks, found without gathering them."""

import torch
from jaxtyping import Float
from torch import Tensor

from transcoders.distributed.ranks import Team
from transcoders.kernels.latents import SparseLatents
from transcoders.kernels.selection import offsets_of

DIGITS = ((20, 11), (10, 10), (0, 10))
"""(shift, bits) of a positive float's 31 bits, which order as its value does."""


def kth_largest(values: Float[Tensor, "own"], k: int, team: Team) -> Float[Tensor, ""]:
    """The exact k-th largest of all ranks' non-negative float32 ``values``; 0 if there are fewer.

    A radix select: per digit the ranks add up a histogram, and go on within the bin that holds the k-th.
    """
    bits = (values.detach() + 0.0).view(torch.int32)  # + 0.0 makes -0.0 positive
    found = bits.new_zeros(())
    left = torch.tensor(k, device=bits.device)
    for shift, width in DIGITS:
        digits = (bits >> shift) & (2**width - 1)
        counts = team.sum_(torch.bincount(digits, minlength=2**width))
        at_least = counts.flip(0).cumsum(0).flip(0)
        digit = ((at_least >= left).sum() - 1).clamp(min=0)
        left = left - (at_least[digit] - counts[digit])
        bits = bits[digits == digit]
        found = found | (digit << shift).int()
    return found.view(torch.float32)


def largest_of_all(own: SparseLatents, k: int, team: Team) -> SparseLatents:
    """Of each token's ``k`` own latents those that are among the ``k`` largest of all ranks.

    What travels is the k values of each token and rank; ids are not needed.
    """
    values = team.gathered(own.values.detach().view(own.tokens, k))
    chosen = values.transpose(0, 1).reshape(own.tokens, -1).topk(k).indices
    kept = torch.zeros(own.tokens, team.size * k, dtype=torch.bool, device=values.device).scatter_(1, chosen, True)
    kept = kept.view(own.tokens, team.size, k)[:, team.rank]
    entries = kept.flatten()
    return SparseLatents(offsets_of(kept.sum(1)), own.indices[entries], own.values[entries], own.d_hidden)
