"""The sparse step on CUDA: launches of `triton_kernels` as torch custom operators.

The encoder matmul runs in the dtype of `x`: give x in bfloat16 for bfloat16 tensor cores over
float32 master weights. Its `[tokens, d_hidden]` result, in that dtype, is freed before the forward
pass returns. Selection, sums and gradients are float32. Custom operators have shapes for tracing
and their own backward, so the functions here work under autograd and torch.compile.
"""

import os
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.library import custom_op

from transcoders.kernels import select, triton_kernels
from transcoders.kernels.latents import SparseLatents, SquaredErrors, splits_of, truncate

_TILE = 2048
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> SparseLatents:
    return _encode(x, W_enc, b_enc, "topk", k)


def batchtopk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> SparseLatents:
    return _encode(x, W_enc, b_enc, "batchtopk", k)


def threshold_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: float | Tensor) -> SparseLatents:
    least = torch.as_tensor(threshold, dtype=torch.float32, device=x.device).detach()
    return _encode(x, W_enc, b_enc, "threshold", 0, least.clamp(min=0).expand(len(W_enc)))


def groupmax_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> SparseLatents:
    return _encode(x, W_enc, b_enc, "groupmax", k)


def bucketed_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, buckets: int) -> SparseLatents:
    return _encode(x, W_enc, b_enc, f"bucketed:{buckets}", k)


def decode(latents: SparseLatents, W_dec: Tensor) -> Float[Tensor, "tokens d_out"]:
    return decode_nested(latents, W_dec, (latents.d_hidden,))[0]


def decode_nested(
    latents: SparseLatents, W_dec: Tensor, prefixes: tuple[int, ...]
) -> Float[Tensor, "prefixes tokens d_out"]:
    _check(W_dec)
    latents = truncate(latents, prefixes[-1])
    splits = splits_of(latents.offsets, latents.indices, prefixes)
    y_hat: Tensor = _nested_sums(splits, latents.indices, latents.values, W_dec)
    return y_hat


def squared_errors(latents: SparseLatents, W_dec: Tensor, target: Tensor, prefixes: tuple[int, ...]) -> SquaredErrors:
    residuals = target - decode_nested(latents, W_dec, prefixes)
    return SquaredErrors(residuals.square().mean((1, 2)), residuals[-1].detach())


def _encode(x: Tensor, W: Tensor, b: Tensor, how: str, k: int, least: Tensor | None = None) -> SparseLatents:
    _check(x)
    offsets, indices, values = _select(x, W, b, how, k, least)
    return SparseLatents(offsets, indices, values, len(W))


def _check(tensor: Tensor) -> None:
    if not (tensor.is_cuda or _INTERPRETED):
        raise ValueError(
            f"backend 'triton' got tensors on {tensor.device}: move them to cuda, use "
            "backend='auto', or set TRITON_INTERPRET=1 to interpret the kernels (slowly)"
        )


@custom_op("mtxplt::select", mutates_args=())
def _select(x: Tensor, W: Tensor, b: Tensor, how: str, k: int, least: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    products = x @ W.to(x.dtype).T
    b = b.contiguous()
    if how == "topk":
        return _select_topk(products, b, k)
    if how == "threshold":
        assert least is not None
        counts, indices, values = _above(products, b, least)
        return select.offsets_of(counts), indices, values
    if how == "batchtopk":
        return select.largest_of_batch(products, b, k, _above)
    if how == "groupmax":
        return select.groupmax(products.add_(b), k)
    return select.bucketed(products.add_(b), k, int(how.removeprefix("bucketed:")))


@_select.register_fake
def _(x: Tensor, W: Tensor, b: Tensor, how: str, k: int, least: Tensor | None) -> Any:
    tokens = x.shape[0]
    nnz = torch.library.get_ctx().new_dynamic_size() if how == "threshold" else tokens * k
    integers = x.new_empty(tokens + 1, dtype=torch.int64)
    return integers, x.new_empty(nnz, dtype=torch.int64), x.new_empty(nnz, dtype=torch.float32)


def _save_selected(ctx: Any, inputs: Any, output: Any) -> None:
    x, W, *_ = inputs
    offsets, indices, values = output
    ctx.mark_non_differentiable(offsets, indices)
    ctx.save_for_backward(x, W, offsets, indices, values)


def _select_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    x, W, offsets, indices, values = ctx.saved_tensors
    splits = torch.stack([offsets[:-1], offsets[1:]], 1)
    grad = grads[2] * (values > 0)
    grad_W, grad_b = _column_sums(splits, indices, grad, x, len(W))
    grad_x = None
    if ctx.needs_input_grad[0]:
        grad_x = _nested_sums(splits, indices, grad, W)[0].to(x.dtype)
    return grad_x, grad_W.to(W.dtype), grad_b.to(W.dtype), None, None, None


_select.register_autograd(_select_backward, setup_context=_save_selected)


@custom_op("mtxplt::nested_sums", mutates_args=())
def _nested_sums(splits: Tensor, indices: Tensor, values: Tensor, W: Tensor) -> Tensor:
    (tokens, bounds), d = splits.shape, W.shape[1]
    out = W.new_empty(bounds - 1, tokens, d, dtype=torch.float32)
    D = min(512, _power_of_2(d))
    triton_kernels.nested_sums[(tokens, -(-d // D))](
        splits, indices, values.contiguous(), W.contiguous(), out, tokens, d, bounds - 1, D
    )
    return out


@_nested_sums.register_fake
def _(splits: Tensor, indices: Tensor, values: Tensor, W: Tensor) -> Tensor:
    shape = (splits.shape[1] - 1, splits.shape[0], W.shape[1])
    return W.new_empty(shape, dtype=torch.float32)


def _save_decoded(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _nested_sums_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    splits, indices, values, W = ctx.saved_tensors
    if grad.shape[0] > 1:  # a latent of group g serves the prefixes g, g + 1, …
        grad = grad.flip(0).cumsum(0).flip(0)
    grad = grad.contiguous()
    grad_values = _entry_dots(splits, indices, grad, W)
    grad_W, _ = _column_sums(splits, indices, values, grad.flatten(0, 1), len(W))
    return None, None, grad_values, grad_W.to(W.dtype)


_nested_sums.register_autograd(_nested_sums_backward, setup_context=_save_decoded)


@custom_op("mtxplt::entry_dots", mutates_args=())
def _entry_dots(splits: Tensor, indices: Tensor, grad: Tensor, W: Tensor) -> Tensor:
    (tokens, bounds), d = splits.shape, W.shape[1]
    dots = torch.empty_like(indices, dtype=torch.float32)
    triton_kernels.entry_dots[(tokens,)](
        splits, indices, grad, W.contiguous(), dots, tokens, d, bounds - 1, _power_of_2(d)
    )
    return dots


@_entry_dots.register_fake
def _(splits: Tensor, indices: Tensor, grad: Tensor, W: Tensor) -> Tensor:
    return torch.empty_like(indices, dtype=torch.float32)


@custom_op("mtxplt::column_sums", mutates_args=())
def _column_sums(splits: Tensor, indices: Tensor, values: Tensor, x: Tensor, d_hidden: int) -> tuple[Tensor, Tensor]:
    d = x.shape[1]
    ids, order = indices.sort(stable=True)
    latents = torch.arange(d_hidden + 1, device=x.device)
    offsets = torch.searchsorted(ids, latents)
    sums = x.new_empty(d_hidden, d, dtype=torch.float32)
    totals = x.new_empty(d_hidden, dtype=torch.float32)
    D = min(512, _power_of_2(d))
    triton_kernels.column_sums[(d_hidden, -(-d // D))](
        offsets,
        order,
        select.rows_of(splits, len(indices)),
        values.contiguous(),
        x.contiguous(),
        sums,
        totals,
        d,
        8,
        D,
    )
    return sums, totals


@_column_sums.register_fake
def _(splits: Tensor, indices: Tensor, values: Tensor, x: Tensor, d_hidden: int) -> Any:
    return x.new_empty(d_hidden, x.shape[1], dtype=torch.float32), x.new_empty(d_hidden, dtype=torch.float32)


def _select_topk(products: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    tokens, d_hidden = products.shape
    device = products.device
    # At least 2k blocks, so that the bound is tight; and never so many that they leave registers.
    tile = max(_power_of_2(2 * k), min(_TILE, _power_of_2(-(-d_hidden // 16))))
    cap = max(256, _power_of_2(2 * k))
    indices = torch.empty(tokens * k, dtype=torch.int64, device=device)
    values = torch.empty(tokens * k, dtype=torch.float32, device=device)
    found = torch.empty(tokens, cap, dtype=torch.int32, device=device)
    if tokens:
        triton_kernels.select_topk[(tokens,)](products, b, indices, values, found, d_hidden, k, tile, cap)
    return torch.arange(0, tokens * k + 1, k, device=device), indices, values


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


def _power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
