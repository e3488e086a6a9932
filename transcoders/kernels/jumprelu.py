"""JumpReLU's gradients to its threshold (arXiv 2407.14435, section 3)."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from transcoders.kernels.latents import SparseLatents


class JumpReLU(NamedTuple):
    latents: SparseLatents
    l0: Float[Tensor, "tokens"]
    """Active latents per token; its gradient reaches the threshold only."""


def jump(candidates: SparseLatents, threshold: Float[Tensor, "d_hidden"], bandwidth: float) -> JumpReLU:
    """Apply the threshold to entries that include all within half a bandwidth of it.

    With K the rectangle of width 1, `∂z/∂θ = −θ/ε · K((p − θ)/ε)` (eq. 11) and
    `∂L0/∂θ = −1/ε · K((p − θ)/ε)` (eq. 12). Where nothing is stored both are 0.
    """
    p = candidates.values
    theta = threshold[candidates.indices]
    active = (p > theta).detach()
    nearby = ((p - theta).abs() < bandwidth / 2).detach()
    # `moved` is 0 in the forward pass and has slope −1/ε in θ near it.
    moved = torch.where(nearby, theta.detach() - theta, 0) / bandwidth
    values = torch.where(active, p, 0) + theta.detach() * moved
    l0 = values.new_zeros(candidates.tokens).index_add(0, candidates.rows(), active + moved)
    return JumpReLU(candidates._replace(values=values), l0)
