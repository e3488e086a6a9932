"""The sparse step on CPU: no dense [tokens, d_hidden] gradient, no expanded [nnz, d] rows.

This module is the autograd; the compiled loops are in `loops` and `selection`.
"""

# torch leaves `Function.apply` untyped.
# mypy: disable-error-code="no-untyped-call"

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from transcoders.kernels.columns import columns_of
from transcoders.kernels.cpu import loops, selection
from transcoders.kernels.cpu.linear import linear
from transcoders.kernels.latents import (
    Group,
    SparseLatents,
    SquaredErrors,
    fixed_offsets,
    offsets_of,
    splits_of,
    truncate,
)
from transcoders.kernels.selection import Selected, groupmax, largest_of_batch

# Bytes of pre-activations that exist at a time: enough for the matmul to run at full speed, few enough for the
# selection to find them in cache, and for the allocator to give the same pages again.
CHUNK_BYTES = 16 << 20

Select = Callable[["Encoder"], Selected]


class Encoder(NamedTuple):
    x: Float[Tensor, "tokens d_in"]
    W_enc: Float[Tensor, "d_hidden d_in"]
    b_enc: Float[Tensor, "d_hidden"]

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the pre-activations of some rows at a time, and which rows they are; one chunk where there are none."""
        size = max(64, CHUNK_BYTES // (len(self.W_enc) * self.x.element_size()))
        for start in range(0, max(1, len(self.x)), size):
            rows = slice(start, min(start + size, len(self.x)))
            yield rows, linear(self.x[rows], self.W_enc, self.b_enc)


def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, groups: tuple[Group, ...]) -> SparseLatents:
    def largest(encoder: Encoder) -> Selected:
        indices = torch.empty(len(x), sum(group.k for group in groups), dtype=torch.int64)
        values = W_enc.new_empty(indices.shape)
        for rows, pre in encoder.chunks():
            selection.select_topk(pre, groups, indices[rows], values[rows])
        return fixed_offsets(indices), indices.view(-1), values.view(-1)

    return _encode(x, W_enc, b_enc, largest)


def batchtopk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> SparseLatents:
    def largest(encoder: Encoder) -> Selected:
        pre = linear(*encoder)
        return largest_of_batch(pre, k, partial(selection.select_above, pre))

    return _encode(x, W_enc, b_enc, largest)


def threshold_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: float | Tensor) -> SparseLatents:
    least = torch.as_tensor(threshold, dtype=W_enc.dtype).detach().clamp(min=0).expand(len(W_enc))
    return _encode(x, W_enc, b_enc, lambda encoder: _select_above(encoder, least))


def groupmax_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> SparseLatents:
    def winners(encoder: Encoder) -> Selected:
        parts = [groupmax(pre, k) for _, pre in encoder.chunks()]
        _, indices, values = (torch.cat(part) for part in zip(*parts, strict=True))
        return torch.arange(0, len(indices) + 1, k), indices, values

    return _encode(x, W_enc, b_enc, winners)


def keep_largest_(pre: Tensor, k: int) -> None:
    if pre.dtype in (torch.float32, torch.float64):
        selection.keep_largest_(pre, k)
    else:  # the compiled loops know numpy's types only; a narrow value is exact in float32
        wide = pre.float()
        selection.keep_largest_(wide, k)
        pre.copy_(wide)


def decode_nested(
    latents: SparseLatents, W_dec: Tensor, prefixes: tuple[int, ...]
) -> Float[Tensor, "prefixes tokens d_out"]:
    latents = truncate(latents, prefixes[-1])
    pattern = (latents.offsets, latents.indices)
    y_hat: Tensor = _Decode.apply(*pattern, latents.values, W_dec, prefixes)
    return y_hat


def squared_errors(latents: SparseLatents, W_dec: Tensor, target: Tensor, prefixes: tuple[int, ...]) -> SquaredErrors:
    latents = truncate(latents, prefixes[-1])
    pattern = (latents.offsets, latents.indices)
    errors, residual = _SquaredErrors.apply(*pattern, latents.values, W_dec, target, prefixes)
    return SquaredErrors(errors, residual)


def _encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, select: Select) -> SparseLatents:
    """Encode with the selection `select`; the gradient flows through the selected entries only."""
    # Few CPUs have instructions for bfloat16, and its products would be rounded: a narrow x is widened.
    offsets, indices, values = _Encode.apply(x.to(W_enc.dtype), W_enc, b_enc, select)
    return SparseLatents(offsets, indices, values, len(W_enc))


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, select: Select) -> Selected:
        x = x.contiguous()
        offsets, indices, values = select(Encoder(x, W_enc, b_enc.contiguous()))
        ctx.mark_non_differentiable(offsets, indices)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, W_enc, offsets, indices, values)
        return offsets, indices, values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, W_enc, offsets, indices, values = ctx.saved_tensors
        splits = splits_of(offsets, indices, (len(W_enc),))
        columns, rows = columns_of(indices, len(W_enc), loops.transpose), loops.rows(splits, len(indices))
        grad_W, grad_b = loops.encoder_gradients(columns, rows, values, grads[2], x)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = loops.nested_sums(splits, indices, grads[2] * (values > 0), W_enc)[0]
        return grad_x, grad_W, grad_b, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, offsets: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, prefixes: tuple[int, ...]
    ) -> Tensor:
        splits = splits_of(offsets, indices, prefixes)
        ctx.save_for_backward(splits, indices, values, W_dec)
        y_hat: Tensor = loops.nested_sums(splits, indices, values.contiguous(), W_dec)
        return y_hat

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        splits, indices, values, W_dec = ctx.saved_tensors
        grad = grads[0].contiguous()
        if len(grad) > 1:  # a latent of group g serves the prefixes g, g + 1, …
            grad = loops.reverse_sums(grad, grad.new_ones(len(grad)))
        grad_values, grad_W = _decoder_gradients(splits, indices, values, grad, W_dec)
        return None, None, grad_values, grad_W, None


class _SquaredErrors(torch.autograd.Function):
    """Decode and compare in one loop: each reconstruction meets its target while it is in cache."""

    @staticmethod
    def forward(
        ctx: Any,
        offsets: Tensor,
        indices: Tensor,
        values: Tensor,
        W_dec: Tensor,
        target: Tensor,
        prefixes: tuple[int, ...],
    ) -> tuple[Tensor, Tensor]:
        splits = splits_of(offsets, indices, prefixes)
        entries = (splits, indices, values.contiguous(), W_dec)
        residuals, squares = loops.nested_residuals(*entries, target)
        ctx.save_for_backward(*entries, residuals)
        residual = residuals[-1].detach()
        ctx.mark_non_differentiable(residual)
        ctx.set_materialize_grads(False)
        return squares.sum(1) / target.numel(), residual

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        splits, indices, values, W_dec, residuals = ctx.saved_tensors
        weights = grads[0] * (-2 / residuals[0].numel())
        grad = loops.reverse_sums(residuals, weights)
        grad_values, grad_W = _decoder_gradients(splits, indices, values, grad, W_dec)
        grad_target = -grad[0] if ctx.needs_input_grad[4] else None
        return None, None, grad_values, grad_W, grad_target, None


def _decoder_gradients(
    splits: Tensor, indices: Tensor, values: Tensor, grad: Tensor, W_dec: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of values and W_dec, from those of the groups' reconstructions `[groups, tokens, d_out]`."""
    columns, rows = columns_of(indices, len(W_dec), loops.transpose), loops.rows(splits, len(indices))
    gradients: tuple[Tensor, Tensor] = loops.decoder_gradients(
        columns, rows, values.contiguous(), grad.flatten(0, 1), W_dec
    )
    return gradients


def _select_above(encoder: Encoder, least: Tensor) -> Selected:
    """Return the entries above `least [d_hidden]`, which is itself at least 0."""
    parts = [selection.select_above(pre, least) for _, pre in encoder.chunks()]
    counts, indices, values = (torch.cat(part) for part in zip(*parts, strict=True))
    return offsets_of(counts), indices, values
