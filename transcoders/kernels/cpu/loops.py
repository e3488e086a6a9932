"""The loops of the CPU step, compiled.

Every output row is computed by one thread, in one order, so results are the same bit for bit
whatever the number of threads. The first call in a process loads (ever: compiles) the machine code.
"""

# numba infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

import numpy as np
import torch
from torch import Tensor

from transcoders.core.buffers import empty
from transcoders.kernels.columns import Columns
from transcoders.kernels.cpu.parallel import jit, part, run
from transcoders.kernels.cpu.parallel import shares as share_count


def transpose(indices: Tensor, d_hidden: int) -> Columns:
    offsets = torch.zeros(d_hidden + 1, dtype=torch.int64)
    order = torch.empty_like(indices)
    _transpose(indices.numpy(), offsets.numpy(), order.numpy())
    return Columns(offsets, order)


def nested_sums(splits: Tensor, indices: Tensor, values: Tensor, W: Tensor) -> Tensor:
    out = empty(splits.shape[1] - 1, len(splits), W.shape[1], like=W)
    run(_nested_sums, splits.numpy(), indices.numpy(), _numpy(values), _numpy(W), out.numpy())
    return out


def nested_residuals(
    splits: Tensor, indices: Tensor, values: Tensor, W: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    out = empty(splits.shape[1] - 1, *target.shape, like=W)
    squares = W.new_empty(out.shape[:2])
    entries = (splits.numpy(), indices.numpy(), _numpy(values), _numpy(W))
    run(_nested_residuals, *entries, _numpy(target), out.numpy(), squares.numpy())
    return out, squares


def reverse_sums(residuals: Tensor, weights: Tensor) -> Tensor:
    out = empty(*residuals.shape, like=residuals)
    run(_reverse_sums, residuals.numpy(), _numpy(weights), out.numpy())
    return out


def rows(splits: Tensor, nnz: int) -> Tensor:
    out = torch.empty(nnz, dtype=torch.int64)
    _rows(splits.numpy(), out.numpy())
    return out


def encoder_gradients(columns: Columns, rows: Tensor, values: Tensor, grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    d_hidden = len(columns.offsets) - 1
    grad_W, grad_b = empty(d_hidden, x.shape[1], like=x), x.new_empty(d_hidden)
    pattern = (columns.offsets.numpy(), columns.order.numpy(), rows.numpy())
    arrays = (_numpy(values), _numpy(grad), _numpy(x), grad_W.numpy(), grad_b.numpy())
    run(_encoder_gradients, _borders(columns.offsets.numpy(), share_count()), *pattern, *arrays)
    return grad_W, grad_b


def decoder_gradients(
    columns: Columns, rows: Tensor, values: Tensor, grad: Tensor, W_dec: Tensor
) -> tuple[Tensor, Tensor]:
    grad_values, grad_W = torch.empty_like(values), empty(*W_dec.shape, like=W_dec)
    pattern = (columns.offsets.numpy(), columns.order.numpy(), rows.numpy())
    arrays = (_numpy(values), _numpy(grad), _numpy(W_dec), grad_values.numpy(), grad_W.numpy())
    run(_decoder_gradients, _borders(columns.offsets.numpy(), share_count()), *pattern, *arrays)
    return grad_values, grad_W


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


@jit
def _borders(offsets, shares):
    """Return borders that split the latents into runs of about equal work, for some latents fire on every token."""
    rows_to_write = np.arange(len(offsets)) * 4
    work = offsets + rows_to_write
    borders = np.searchsorted(work, np.linspace(0, work[-1], shares + 1))
    borders[0], borders[-1] = 0, len(offsets) - 1
    return borders


@jit
def _transpose(indices, offsets, order):
    """Sort the entries by latent into `order`, by counting; the entries of a latent stay in the order of tokens."""
    for i in indices:
        offsets[i + 1] += 1
    for i in range(len(offsets) - 1):
        offsets[i + 1] += offsets[i]
    ends = offsets[:-1].copy()
    for entry in range(len(indices)):
        i = indices[entry]
        order[ends[i]] = entry
        ends[i] += 1


@jit
def _rows(splits, out):
    tokens, groups = splits.shape[0], splits.shape[1] - 1
    for t in range(tokens):
        for g in range(groups):
            out[splits[t, g] : splits[t, g + 1]] = g * tokens + t


@jit
def _nested_sums(share, shares, splits, indices, values, W, out):
    tokens, groups = splits.shape[0], splits.shape[1] - 1
    one = W.dtype.type(1)
    for t in range(*part(tokens, share, shares)):
        for g in range(groups):
            row = out[g, t]
            if g:
                row[:] = out[g - 1, t]
            else:
                row[:] = 0
            _add_rows(row, indices, values, W, splits[t, g], splits[t, g + 1], one)


@jit
def _nested_residuals(share, shares, splits, indices, values, W, target, out, squares):
    tokens, groups = splits.shape[0], splits.shape[1] - 1
    minus_one = W.dtype.type(-1)
    for t in range(*part(tokens, share, shares)):
        for g in range(groups):
            row = out[g, t]
            if g:
                row[:] = out[g - 1, t]
            else:
                row[:] = target[t]
            _add_rows(row, indices, values, W, splits[t, g], splits[t, g + 1], minus_one)
            square = W.dtype.type(0)
            for j in range(len(row)):
                square += row[j] * row[j]
            squares[g, t] = square


@jit
def _reverse_sums(share, shares, residuals, weights, out):
    groups, tokens = residuals.shape[:2]
    for t in range(*part(tokens, share, shares)):
        for g in range(groups - 1, -1, -1):
            row, source, weight = out[g, t], residuals[g, t], weights[g]
            if g < groups - 1:
                later = out[g + 1, t]
                for j in range(len(row)):
                    row[j] = weight * source[j] + later[j]
            else:
                for j in range(len(row)):
                    row[j] = weight * source[j]


@jit
def _encoder_gradients(share, shares, borders, offsets, order, rows, values, grad, x, grad_W, grad_b):
    zero = grad.dtype.type(0)
    for i in range(borders[share], borders[share + 1]):
        row = grad_W[i]
        row[:] = 0
        total = zero
        n, stop = offsets[i], offsets[i + 1]
        while n + 4 <= stop:  # four at a time, to spare stores
            e, f, g, h = order[n], order[n + 1], order[n + 2], order[n + 3]
            v0 = grad[e] if values[e] > 0 else zero
            v1 = grad[f] if values[f] > 0 else zero
            v2 = grad[g] if values[g] > 0 else zero
            v3 = grad[h] if values[h] > 0 else zero
            a, b, c, d = x[rows[e]], x[rows[f]], x[rows[g]], x[rows[h]]
            total += v0 + v1 + v2 + v3
            for j in range(len(row)):
                row[j] += v0 * a[j] + v1 * b[j] + v2 * c[j] + v3 * d[j]
            n += 4
        for m in range(n, stop):
            e = order[m]
            v, a = grad[e] if values[e] > 0 else zero, x[rows[e]]
            total += v
            for j in range(len(row)):
                row[j] += v * a[j]
        grad_b[i] = total


@jit
def _decoder_gradients(share, shares, borders, offsets, order, rows, values, grad, W_dec, grad_values, grad_W):
    """Write both gradients of the decoder in one reading of the rows of `grad`."""
    zero = grad.dtype.type(0)
    for i in range(borders[share], borders[share + 1]):
        row, direction = grad_W[i], W_dec[i]
        row[:] = 0
        n, stop = offsets[i], offsets[i + 1]
        while n + 2 <= stop:
            e, f = order[n], order[n + 1]
            v, w, a, b = values[e], values[f], grad[rows[e]], grad[rows[f]]
            dot0 = dot1 = zero
            for j in range(len(row)):
                dot0 += a[j] * direction[j]
                dot1 += b[j] * direction[j]
                row[j] += v * a[j] + w * b[j]
            grad_values[e], grad_values[f] = dot0, dot1
            n += 2
        if n < stop:
            e = order[n]
            v, a = values[e], grad[rows[e]]
            dot0 = zero
            for j in range(len(row)):
                dot0 += a[j] * direction[j]
                row[j] += v * a[j]
            grad_values[e] = dot0


@jit
def _add_rows(row, indices, values, W, start, stop, sign):
    """Add `sign · values · W[indices]` of the entries start..stop to `row`, four at a time to spare stores."""
    n = start
    while n + 4 <= stop:
        v0, v1 = sign * values[n], sign * values[n + 1]
        v2, v3 = sign * values[n + 2], sign * values[n + 3]
        a, b, c, d = W[indices[n]], W[indices[n + 1]], W[indices[n + 2]], W[indices[n + 3]]
        for j in range(len(row)):
            row[j] += v0 * a[j] + v1 * b[j] + v2 * c[j] + v3 * d[j]
        n += 4
    for m in range(n, stop):
        v, w = sign * values[m], W[indices[m]]
        for j in range(len(row)):
            row[j] += v * w[j]
