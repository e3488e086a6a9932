"""The errors of several layers' latents on CPU, and their gradients, in blocks of columns that stay in cache.

The decoders of all layers together fit no cache. Column by column they do: a block of a decoder is read once for all
tokens of a batch, instead of once for each token that fires a latent.
"""

# torch leaves `Function.apply` untyped; numba infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-call,no-untyped-def,untyped-decorator"

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from transcoders.core.buffers import empty
from transcoders.kernels.columns import columns_of
from transcoders.kernels.cpu import loops
from transcoders.kernels.cpu.parallel import jit, part, run
from transcoders.kernels.latents import Source, SquaredErrors, splits_of, truncate

BLOCK_BYTES = 3 << 19
"""Of a decoder's columns that are worked on at a time: what a second-level cache of 2 MB has room for."""
NARROWEST = 64
"""Columns of a block, at least: shorter runs of memory are read slowly."""


class _Entries(NamedTuple):
    """Hold what is active of one source, divided by prefixes."""

    splits: Tensor
    indices: Tensor
    values: Tensor
    W_dec: Tensor
    first: int


def squared_errors(sources: Sequence[Source], target: Tensor, prefixes: tuple[int, ...]) -> SquaredErrors:
    patterns, tensors = [], [target]
    for source in sources:
        latents = truncate(source.latents, prefixes[-1])
        patterns.append((splits_of(latents.offsets, latents.indices, prefixes), latents.indices, source.first))
        tensors += [latents.values, source.W_dec]
    errors, residual = _SquaredErrors.apply(patterns, *tensors)
    return SquaredErrors(errors, residual)


class _SquaredErrors(torch.autograd.Function):
    """Let every source add to the groups' reconstructions, then compare the running sums over groups."""

    @staticmethod
    def forward(ctx: Any, patterns: list[tuple[Tensor, Tensor, int]], target: Tensor, *tensors: Tensor) -> Any:
        sources = [
            _Entries(splits, indices, values.contiguous(), W_dec, first)
            for (splits, indices, first), values, W_dec in zip(patterns, tensors[::2], tensors[1::2], strict=True)
        ]
        groups = sources[0].splits.shape[1] - 1
        residuals = empty(groups, *target.shape, like=target)
        residuals[0] = target
        residuals[1:] = 0
        for source in sources:
            _subtract_(residuals, source)
        squares = target.new_empty(groups, len(target))
        run(_sum_up, residuals.numpy(), squares.numpy())
        ctx.sources = [source._replace(values=torch.empty(0), W_dec=torch.empty(0)) for source in sources]
        ctx.save_for_backward(residuals, *(t for source in sources for t in (source.values, source.W_dec)))
        residual = residuals[-1].detach()
        ctx.mark_non_differentiable(residual)
        ctx.set_materialize_grads(False)
        return squares.sum(1) / target.numel(), residual

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        residuals, *saved = ctx.saved_tensors
        grad = loops.reverse_sums(residuals, grads[0] * (-2 / residuals[0].numel()))
        results: list[Tensor | None] = [None, -grad[0] if ctx.needs_input_grad[1] else None]
        for pattern, values, W_dec in zip(ctx.sources, saved[::2], saved[1::2], strict=True):
            results += _gradients(pattern._replace(values=values, W_dec=W_dec), grad.flatten(0, 1))
        return tuple(results)


def _subtract_(residuals: Tensor, source: _Entries) -> None:
    """Take what each group of a source's latents makes out of that group's row."""
    arrays = (source.splits.numpy(), source.indices.numpy(), _numpy(source.values), _numpy(source.W_dec))
    run(_subtract, *arrays, residuals.numpy(), source.first, _block(source.W_dec))


def _gradients(source: _Entries, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of a source's values and decoder, ``grad`` being that of ``[groups · tokens, width]``."""
    indices, W_dec, block = source.indices, source.W_dec, _block(source.W_dec)
    columns = columns_of(indices, len(W_dec), loops.transpose)
    rows = loops.rows(source.splits, len(indices))
    blocks = -(-W_dec.shape[1] // block)
    dots, grad_W = empty(blocks, len(indices), like=W_dec), empty(*W_dec.shape, like=W_dec)
    pattern = (columns.offsets.numpy(), columns.order.numpy(), rows.numpy())
    arrays = (_numpy(source.values), _numpy(grad), _numpy(W_dec), dots.numpy(), grad_W.numpy())
    run(_decoder_gradients, *pattern, *arrays, source.first, block)
    return dots.sum(0), grad_W


def _block(W_dec: Tensor) -> int:
    """Return how many columns of a decoder are worked on at a time."""
    size = BLOCK_BYTES // (len(W_dec) * W_dec.element_size())
    return min(W_dec.shape[1], max(NARROWEST, size // NARROWEST * NARROWEST))


def _numpy(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


@jit
def _subtract(share, shares, splits, indices, values, W, residuals, first, block):
    tokens, groups, width = splits.shape[0], splits.shape[1] - 1, W.shape[1]
    for number in range(*part((width + block - 1) // block, share, shares)):
        start, stop = number * block, min((number + 1) * block, width)
        for t in range(tokens):
            for g in range(groups):
                row = residuals[g, t][first + start : first + stop]
                n, last = splits[t, g], splits[t, g + 1]
                while n + 4 <= last:  # four at a time, to spare stores
                    v0, v1, v2, v3 = values[n], values[n + 1], values[n + 2], values[n + 3]
                    a, b = W[indices[n]][start:stop], W[indices[n + 1]][start:stop]
                    c, d = W[indices[n + 2]][start:stop], W[indices[n + 3]][start:stop]
                    for j in range(len(row)):
                        row[j] -= v0 * a[j] + v1 * b[j] + v2 * c[j] + v3 * d[j]
                    n += 4
                for m in range(n, last):
                    v, w = values[m], W[indices[m]][start:stop]
                    for j in range(len(row)):
                        row[j] -= v * w[j]


@jit
def _sum_up(share, shares, residuals, squares):
    """Make running sums over groups of what each left, and the square of each."""
    groups, tokens = residuals.shape[:2]
    for t in range(*part(tokens, share, shares)):
        for g in range(groups):
            row = residuals[g, t]
            if g:
                before = residuals[g - 1, t]
                for j in range(len(row)):
                    row[j] += before[j]
            square = row.dtype.type(0)
            for j in range(len(row)):
                square += row[j] * row[j]
            squares[g, t] = square


@jit
def _decoder_gradients(share, shares, offsets, order, rows, values, grad, W, dots, grad_W, first, block):
    """Write the gradients of W, and of each value the part that a block of columns adds to it."""
    zero = grad.dtype.type(0)
    width = W.shape[1]
    for number in range(*part((width + block - 1) // block, share, shares)):
        start, stop = number * block, min((number + 1) * block, width)
        for i in range(len(W)):
            row, direction = grad_W[i][start:stop], W[i][start:stop]
            row[:] = zero
            n, last = offsets[i], offsets[i + 1]
            while n + 2 <= last:
                e, f = order[n], order[n + 1]
                v, w = values[e], values[f]
                a, b = grad[rows[e]][first + start : first + stop], grad[rows[f]][first + start : first + stop]
                dot0 = dot1 = zero
                for j in range(len(row)):
                    dot0 += a[j] * direction[j]
                    dot1 += b[j] * direction[j]
                    row[j] += v * a[j] + w * b[j]
                dots[number, e], dots[number, f] = dot0, dot1
                n += 2
            if n < last:
                e = order[n]
                v, a = values[e], grad[rows[e]][first + start : first + stop]
                dot0 = zero
                for j in range(len(row)):
                    dot0 += a[j] * direction[j]
                    row[j] += v * a[j]
                dots[number, e] = dot0
