"""AuxK: dead latents learn from what the live ones leave (arXiv 2406.04093, appendix A.2)."""

# torch leaves `Function.apply` untyped.
# mypy: disable-error-code="no-untyped-call"

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transcoders.kernels.latents import SparseLatents

TopK = Callable[[Tensor, Tensor, Tensor, int], SparseLatents]
Decode = Callable[[SparseLatents, Tensor], Tensor]

# From this share of active latents on, dense matmuls over the dead ones beat sparse gathers.
_DENSE_SHARE = 1 / 8


def auxk(
    x: Float[Tensor, "tokens d_in"],
    residual: Float[Tensor, "tokens d_out"],
    W_enc: Float[Tensor, "d_hidden d_in"],
    b_enc: Float[Tensor, "d_hidden"],
    W_dec: Float[Tensor, "d_hidden d_out"],
    dead_indices: Int[Tensor, "dead"],
    k_aux: int,
    topk_encode: TopK,
    decode: Decode,
    variance: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    residual = residual.detach()
    dead = len(dead_indices)
    k_aux = min(k_aux, dead)
    if k_aux == 0:
        return residual.new_zeros(())
    encoder, decoder = _Rows.apply(W_enc, dead_indices), _Rows.apply(W_dec, dead_indices)
    bias = b_enc[dead_indices]
    if k_aux < _DENSE_SHARE * dead:
        reconstruction = decode(topk_encode(x, encoder, bias, k_aux), decoder)
    else:
        z = _dense_topk(x, encoder, bias, k_aux)
        reconstruction = (z @ decoder.to(z.dtype)).to(residual.dtype)
    if variance is None:
        variance = variance_of(residual)
    return (residual - reconstruction).square().mean() / variance


def variance_of(residual: Float[Tensor, "tokens d_out"]) -> Float[Tensor, ""]:
    """Mean square about the mean token, over tokens and dimensions."""
    return (residual - residual.mean(0)).square().mean()


def _dense_topk(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> Float[Tensor, "tokens dead"]:
    """`relu(TopK)` as a dense matrix, in the dtype of x."""
    pre = torch.addmm(b_enc.to(x.dtype), x, W_enc.to(x.dtype).T)
    if k < len(b_enc):
        left_out = pre.detach().topk(len(b_enc) - k, largest=False, sorted=False).indices
        pre = pre.scatter(1, left_out, 0.0)
    return pre.relu()


class _Rows(torch.autograd.Function):
    """`W[rows]`, with a gradient for these rows only instead of one that is zero elsewhere."""

    @staticmethod
    def forward(ctx: Any, W: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = W.shape
        return W[rows]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(rows[None], grads[0], ctx.shape, check_invariants=False), None
