"""The sparse step on CUDA: launches of `triton_kernels` as torch custom operators.

The encoder matmul runs in the dtype of `x`, or in autocast's: bfloat16 tensor cores over float32
master weights. Its result, in that dtype, exists for some rows at a time. Selection, sums and
gradients are float32. Custom operators have shapes for tracing and their own backward, so the
functions here work under autograd and torch.compile.
"""

import os
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.library import custom_op

from transcoders.kernels import selection as select
from transcoders.kernels.columns import Columns, columns_of
from transcoders.kernels.cuda import programs as triton_kernels
from transcoders.kernels.latents import (
    Group,
    SparseLatents,
    SquaredErrors,
    fixed_offsets,
    offsets_of,
    splits_of,
    truncate,
)

_TILE = 2048
# Rows of products that exist at a time: enough to fill a GPU, and few enough that they and the copy of the weights in
# their dtype stay below the [tokens, d_hidden] of a large batch.
_CHUNK_BYTES = 128 << 20
_LEAST_ROWS = 2048
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, groups: tuple[Group, ...]) -> SparseLatents:
    _check(x)
    offsets, indices, values = _topk(x, W_enc, b_enc, [number for group in groups for number in group])
    return SparseLatents(offsets, indices, values, len(W_enc))


def batchtopk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> SparseLatents:
    return _encode(x, W_enc, b_enc, "batchtopk", k)


def threshold_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: float | Tensor) -> SparseLatents:
    least = torch.as_tensor(threshold, dtype=torch.float32, device=x.device).detach()
    return _encode(x, W_enc, b_enc, "threshold", 0, least.clamp(min=0).expand(len(W_enc)))


def groupmax_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> SparseLatents:
    return _encode(x, W_enc, b_enc, "groupmax", k)


def keep_largest_(pre: Tensor, k: int) -> None:
    _check(pre)
    tokens, latents = pre.shape
    tile = _power_of_2(latents)
    if tokens:
        triton_kernels.keep_largest[(tokens,)](pre, latents, k, tile, num_warps=8 if tile > 2048 else 4)


def decode_nested(
    latents: SparseLatents, W_dec: Tensor, prefixes: tuple[int, ...]
) -> Float[Tensor, "prefixes tokens d_out"]:
    _check(W_dec)
    latents = truncate(latents, prefixes[-1])
    splits = splits_of(latents.offsets, latents.indices, prefixes)
    y_hat: Tensor = _nested_sums(splits, latents.indices, latents.values, W_dec)
    return y_hat


def squared_errors(latents: SparseLatents, W_dec: Tensor, target: Tensor, prefixes: tuple[int, ...]) -> SquaredErrors:
    _check(W_dec)
    latents = truncate(latents, prefixes[-1])
    splits = splits_of(latents.offsets, latents.indices, prefixes)
    errors, residuals = _squared_errors(splits, latents.indices, latents.values, W_dec, target)
    return SquaredErrors(errors, residuals[-1].detach())


def _encode(x: Tensor, W: Tensor, b: Tensor, how: str, k: int, least: Tensor | None = None) -> SparseLatents:
    _check(x)
    offsets, indices, values = _select(x, W, b, how, k, least)
    return SparseLatents(offsets, indices, values, len(W))


def _check(tensor: Tensor) -> None:
    if not (tensor.is_cuda or _INTERPRETED):
        raise ValueError(
            f"backend 'triton' got tensors on {tensor.device}: move them to cuda, use "
            "the kernels of their device, or set TRITON_INTERPRET=1 to interpret these (slowly)"
        )


@custom_op("mtxplt::select", mutates_args=())
def _select(x: Tensor, W: Tensor, b: Tensor, how: str, k: int, least: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    products = x @ W.to(x.dtype).T
    b = b.contiguous()
    if how == "threshold":
        assert least is not None
        counts, indices, values = _above(products, b, least)
        return offsets_of(counts), indices, values
    if how == "batchtopk":
        return select.largest_of_batch(products, k, partial(_above, products, b), b)
    return select.groupmax(products.add_(b), k)


@_select.register_fake
def _(x: Tensor, W: Tensor, b: Tensor, how: str, k: int, least: Tensor | None) -> Any:
    tokens = x.shape[0]
    nnz = torch.library.get_ctx().new_dynamic_size() if how == "threshold" else tokens * k
    integers = x.new_empty(tokens + 1, dtype=torch.int64)
    return integers, x.new_empty(nnz, dtype=torch.int64), x.new_empty(nnz, dtype=torch.float32)


@custom_op("mtxplt::topk", mutates_args=())
def _topk(x: Tensor, W: Tensor, b: Tensor, groups: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Select the k largest latents of each group; `groups` has start, stop and k of each, one after the other."""
    tokens, d_hidden = len(x), len(W)
    narrow, b = W.to(_product_dtype(x)), b.contiguous()
    indices = torch.empty(tokens, sum(groups[2::3]), dtype=torch.int64, device=x.device)
    values = torch.empty(indices.shape, dtype=torch.float32, device=x.device)
    rows_at_once = max(_LEAST_ROWS, _CHUNK_BYTES // (d_hidden * narrow.element_size()))
    for start in range(0, tokens, rows_at_once):
        rows = slice(start, start + rows_at_once)
        products = x[rows].to(narrow.dtype) @ narrow.T
        _select_topk(products, b, groups, indices[rows], values[rows])
    return fixed_offsets(indices), indices.view(-1), values.view(-1)


def _product_dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype


@_topk.register_fake
def _(x: Tensor, W: Tensor, b: Tensor, groups: list[int]) -> Any:
    tokens, k = x.shape[0], sum(groups[2::3])
    indices, values = (x.new_empty(tokens * k, dtype=dtype) for dtype in (torch.int64, torch.float32))
    return x.new_empty(tokens + 1, dtype=torch.int64), indices, values


def _save_selected(ctx: Any, inputs: Any, output: Any) -> None:
    x, W, *others = inputs
    offsets, indices, values = output
    ctx.others = [None] * (len(others) - 1)
    ctx.mark_non_differentiable(offsets, indices)
    ctx.save_for_backward(x, W, offsets, indices, values)


def _select_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    x, W, offsets, indices, values = ctx.saved_tensors
    splits = torch.stack([offsets[:-1], offsets[1:]], 1)
    grad = grads[2] * (values > 0)
    grad_W, grad_b = _encoder_gradients(splits, indices, grad, x, len(W))
    grad_x = None
    if ctx.needs_input_grad[0]:
        grad_x = _nested_sums(splits, indices, grad, W)[0].to(x.dtype)
    return grad_x, grad_W.to(W.dtype), grad_b.to(W.dtype), *ctx.others


_select.register_autograd(_select_backward, setup_context=_save_selected)
_topk.register_autograd(_select_backward, setup_context=_save_selected)


@custom_op("mtxplt::nested_sums", mutates_args=())
def _nested_sums(splits: Tensor, indices: Tensor, values: Tensor, W: Tensor) -> Tensor:
    return _gather(splits, indices, values, W, None)[0]


@_nested_sums.register_fake
def _(splits: Tensor, indices: Tensor, values: Tensor, W: Tensor) -> Tensor:
    return _reconstructions(splits, W)


def _save_decoded(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _nested_sums_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    splits, indices, values, W = ctx.saved_tensors
    if grad.shape[0] > 1:  # a latent of group g serves the prefixes g, g + 1, …
        grad = _reverse_sums(grad.contiguous(), torch.ones_like(grad[:, 0, 0]))
    grad_values, grad_W = _decoder_gradients(splits, indices, values, grad.flatten(0, 1), W)
    return None, None, grad_values, grad_W.to(W.dtype)


_nested_sums.register_autograd(_nested_sums_backward, setup_context=_save_decoded)


@custom_op("mtxplt::squared_errors", mutates_args=())
def _squared_errors(
    splits: Tensor, indices: Tensor, values: Tensor, W: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    residuals, squares = _gather(splits, indices, values, W, target.float().contiguous())
    return squares.sum((0, 2)) / target.numel(), residuals


@_squared_errors.register_fake
def _(splits: Tensor, indices: Tensor, values: Tensor, W: Tensor, target: Tensor) -> Any:
    residuals = _reconstructions(splits, W)
    return residuals.new_empty(len(residuals)), residuals


def _save_errors(ctx: Any, inputs: Any, output: Any) -> None:
    splits, indices, values, W, target = inputs
    residuals = output[1]
    ctx.mark_non_differentiable(residuals)
    ctx.target_dtype = target.dtype
    ctx.save_for_backward(splits, indices, values, W, residuals)


def _squared_errors_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    splits, indices, values, W, residuals = ctx.saved_tensors
    grad = _reverse_sums(residuals, grads[0] * (-2 / residuals[0].numel()))
    grad_values, grad_W = _decoder_gradients(splits, indices, values, grad.flatten(0, 1), W)
    grad_target = -grad[0].to(ctx.target_dtype) if ctx.needs_input_grad[4] else None
    return None, None, grad_values, grad_W.to(W.dtype), grad_target


_squared_errors.register_autograd(_squared_errors_backward, setup_context=_save_errors)


def _reconstructions(splits: Tensor, W: Tensor) -> Tensor:
    return W.new_empty(splits.shape[1] - 1, splits.shape[0], W.shape[1], dtype=torch.float32)


def _gather(splits: Tensor, indices: Tensor, values: Tensor, W: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return nested sums, or what they leave of the target and its squares by (block of columns, group, token)."""
    out = _reconstructions(splits, W)
    (groups, tokens, d), D = out.shape, _columns_at_once(W)
    grid = (tokens, -(-d // D))
    squares = out.new_empty(grid[1], groups, tokens)
    if tokens:
        tensors = (splits, indices, values.contiguous(), W.contiguous(), target, out, squares)
        triton_kernels.nested_sums[grid](*tensors, tokens, d, groups, target is not None, STEP=4, D=D)
    return out, squares


@custom_op("mtxplt::reverse_sums", mutates_args=())
def _reverse_sums(residuals: Tensor, weights: Tensor) -> Tensor:
    out = torch.empty_like(residuals)
    numel, tile = residuals[0].numel(), 1024
    triton_kernels.reverse_sums[(-(-numel // tile),)](residuals, weights.contiguous(), out, numel, len(out), tile)
    return out


@_reverse_sums.register_fake
def _(residuals: Tensor, weights: Tensor) -> Tensor:
    return torch.empty_like(residuals)


@custom_op("mtxplt::encoder_gradients", mutates_args=())
def _encoder_gradients(
    splits: Tensor, indices: Tensor, grad: Tensor, x: Tensor, d_hidden: int
) -> tuple[Tensor, Tensor]:
    grad_W, grad_b, _ = _column_sums(splits, indices, grad, x, d_hidden, None)
    return grad_W, grad_b


@_encoder_gradients.register_fake
def _(splits: Tensor, indices: Tensor, grad: Tensor, x: Tensor, d_hidden: int) -> Any:
    return x.new_empty(d_hidden, x.shape[1], dtype=torch.float32), x.new_empty(d_hidden, dtype=torch.float32)


@custom_op("mtxplt::decoder_gradients", mutates_args=())
def _decoder_gradients(
    splits: Tensor, indices: Tensor, values: Tensor, grad: Tensor, W: Tensor
) -> tuple[Tensor, Tensor]:
    grad_W, _, dots = _column_sums(splits, indices, values, grad, len(W), W)
    order = columns_of(indices, len(W), _transpose).order
    return torch.empty_like(values).index_copy_(0, order, dots.sum(0)), grad_W


@_decoder_gradients.register_fake
def _(splits: Tensor, indices: Tensor, values: Tensor, grad: Tensor, W: Tensor) -> Any:
    return torch.empty_like(values), torch.empty_like(W, dtype=torch.float32)


def _column_sums(
    splits: Tensor, indices: Tensor, values: Tensor, x: Tensor, d_hidden: int, W: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `Vᵀ x`, `Vᵀ 1` and `x Wᵀ` at the entries of the sparse latents V; the second without W, the third with it.

    `x Wᵀ` comes by block of columns, in the order of latents.
    """
    d, D = x.shape[1], _columns_at_once(x)
    grid = (d_hidden, -(-d // D))
    columns = columns_of(indices, d_hidden, _transpose)
    # Latents that fire most come first; a stable sort keeps the order of the sums, and so the bits.
    schedule = columns.offsets.diff().argsort(descending=True, stable=True)
    sums = x.new_empty(d_hidden, d, dtype=torch.float32)
    totals = x.new_empty(d_hidden, dtype=torch.float32)
    dots = totals.new_empty(grid[1], len(indices))
    pattern = (schedule, columns.offsets, columns.order, select.rows_of(splits, len(indices)))
    tensors = (values.contiguous(), x.contiguous(), None if W is None else W.contiguous(), sums, totals, dots)
    triton_kernels.column_sums[grid](*pattern, *tensors, d, len(indices), W is not None, STEP=8, D=D)
    return sums, totals, dots


def _transpose(indices: Tensor, d_hidden: int) -> Columns:
    ids, order = indices.int().sort(stable=True)  # half the passes of a sort of 64 bits
    return Columns(torch.searchsorted(ids, torch.arange(d_hidden + 1, device=ids.device, dtype=ids.dtype)), order)


def _select_topk(products: Tensor, b: Tensor, groups: list[int], indices: Tensor, values: Tensor) -> None:
    """Fill `indices` and `values` [tokens, k of all groups] with the k largest of each group."""
    (tokens, d_hidden), k_all, first = products.shape, indices.shape[1], 0
    for begin, stop, k in zip(groups[::3], groups[1::3], groups[2::3], strict=True):
        # At least 2k blocks, so that the bound is tight; and never so many that they leave registers.
        tile = max(_power_of_2(2 * k), min(_TILE, _power_of_2(-(-(stop - begin) // 16))))
        lanes = _power_of_2(2 * k)
        cap = max(256, lanes)
        chunk = max(lanes, _TILE)
        scratch = torch.empty(tokens, lanes + cap, dtype=torch.int32, device=products.device)
        triton_kernels.select_topk[(tokens,)](
            products, b, indices, values, scratch, d_hidden, begin, stop, k, first, k_all, tile, lanes, cap, chunk
        )
        first += k


def _above(products: Tensor, b: Tensor, least: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    tokens, d_hidden = products.shape
    counts = torch.empty(tokens, dtype=torch.int64, device=products.device)
    least = least.float().contiguous()
    tile = min(_TILE, _power_of_2(d_hidden))
    triton_kernels.count_above[(tokens,)](products, b, least, counts, d_hidden, tile)
    starts = counts.cumsum(0) - counts
    nnz = int(counts.sum())
    indices = torch.empty(nnz, dtype=torch.int64, device=products.device)
    values = torch.empty(nnz, dtype=torch.float32, device=products.device)
    triton_kernels.fill_above[(tokens,)](products, b, least, starts, indices, values, d_hidden, tile)
    return counts, indices, values


def _columns_at_once(W: Tensor) -> int:
    return min(512, _power_of_2(W.shape[1]))


def _power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
