"""AuxK: dead latents learn from what the live ones leave (arXiv 2406.04093, appendix A.2)."""

# torch leaves `Function.apply` untyped.
# mypy: disable-error-code="no-untyped-call"

from types import ModuleType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transcoders.kernels.latents import Group

# From this share of active latents on, dense matmuls over the dead ones beat sparse gathers.
_DENSE_SHARE = 1 / 8


def auxk(
    x: Float[Tensor, "tokens d_in"],
    residual: Float[Tensor, "tokens d_out"],
    W_enc: Float[Tensor, "d_hidden d_in"],
    b_enc: Float[Tensor, "d_hidden"],
    W_dec: Float[Tensor, "d_hidden d_out"],
    dead: Int[Tensor, "dead"],
    k_aux: int,
    variance: Float[Tensor, ""],
    module: ModuleType,
) -> Float[Tensor, ""]:
    residual = residual.detach()
    k_aux = min(k_aux, len(dead))
    if k_aux == 0:
        return residual.new_zeros(())
    if k_aux >= _DENSE_SHARE * len(dead):
        loss: Tensor = _Dense.apply(x, W_enc, b_enc, W_dec, _Fixed(residual, dead, k_aux, module, variance))
        return loss
    encoder, decoder = _Rows.apply(W_enc, dead), _Rows.apply(W_dec, dead)
    latents = module.topk_encode(x, encoder, b_enc[dead], (Group(0, len(dead), k_aux),))
    (y_hat,) = module.decode_nested(latents, decoder, (len(dead),))
    return (residual - y_hat).square().mean() / variance


def variance_of(residual: Float[Tensor, "tokens d_out"]) -> Float[Tensor, ""]:
    """Return the mean square of `residual` about its mean token, over tokens and dimensions."""
    return _mean_square(residual - residual.mean(0))


def _mean_square(values: Tensor) -> Tensor:
    """Return `values.square().mean()`, computed in one pass."""
    return torch.linalg.vector_norm(values).square() / values.numel()


class _Fixed(NamedTuple):
    """Hold the arguments of AuxK to which no gradient flows."""

    residual: Tensor
    dead: Tensor
    k_aux: int
    module: ModuleType
    variance: Tensor


class _Dense(torch.autograd.Function):
    """Compute AuxK in five matmuls of tokens by dead latents.

    Its only use is to be minimised, so the gradients are made at once, while what they need is there.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, fixed: _Fixed) -> Tensor:
        dead = fixed.dead
        decoder = W_dec[dead].to(x.dtype)
        z = torch.addmm(b_enc[dead].to(x.dtype), x, W_enc[dead].to(x.dtype).T)
        fixed.module.keep_largest_(z, fixed.k_aux)
        z = z.to(x.dtype)
        error = fixed.residual - (z @ decoder).to(fixed.residual.dtype)
        slope = -2 / (error.numel() * fixed.variance)
        narrow = error.to(x.dtype)
        grad_z = narrow @ decoder.T
        grad_z = torch.ops.aten.threshold_backward(grad_z, z.to(grad_z.dtype), 0)
        grad_x = grad_z @ W_enc[dead].to(x.dtype) if ctx.needs_input_grad[0] else x.new_empty(0)
        grads = [slope * grad.to(slope) for grad in (grad_x, grad_z.T @ x, grad_z.sum(0), z.T @ narrow)]
        ctx.x_dtype = x.dtype
        ctx.shapes = (W_enc.shape, b_enc.shape, W_dec.shape)
        ctx.save_for_backward(dead, *grads)
        return _mean_square(error) / fixed.variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dead, grad_x, *rows = ctx.saved_tensors
        sparse = (
            torch.sparse_coo_tensor(dead[None], grads[0] * grad, shape, check_invariants=False)
            for grad, shape in zip(rows, ctx.shapes, strict=True)
        )
        return (grads[0] * grad_x).to(ctx.x_dtype) if ctx.needs_input_grad[0] else None, *sparse, None


class _Rows(torch.autograd.Function):
    """Return `W[rows]`, with a sparse gradient of these rows instead of one that is zero elsewhere."""

    @staticmethod
    def forward(ctx: Any, W: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = W.shape
        return W[rows]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(rows[None], grads[0], ctx.shape, check_invariants=False), None
