"""The loops of the CPU step in torch operations. `cpu_numba` has the same functions, compiled."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

from transcoders.kernels.columns import Columns
from transcoders.kernels.latents import Group
from transcoders.kernels.selection import rows_of as rows


def select_topk(
    pre: Float[Tensor, "rows d_hidden"],
    groups: Sequence[Group],
    indices: Int[Tensor, "rows k"],
    values: Float[Tensor, "rows k"],
) -> None:
    """The k largest of each group in each row: `indices` (ascending), rectified `values`."""
    ids = [start + _largest(pre[:, start:stop], k) for start, stop, k in groups]
    torch.cat(ids, 1, out=indices)
    torch.gather(pre, 1, indices, out=values).relu_()


def _largest(pre: Float[Tensor, "rows latents"], k: int) -> Int[Tensor, "rows k"]:
    """They lie in the k blocks with the largest maxima: selecting blocks first leaves 1/8 to sort."""
    rows, latents = pre.shape
    size = 8
    blocks = latents // size
    if latents % size or blocks < 4 * k:
        return pre.topk(k, sorted=False).indices.sort().values
    by_block = pre.unflatten(1, (size, blocks))
    chosen = by_block.amax(1).topk(k, sorted=False).indices
    candidates = by_block.gather(2, chosen[:, None].expand(rows, size, k)).view(rows, -1)
    winners = candidates.topk(k, sorted=False).indices
    within = winners // k
    return (within * blocks + chosen.gather(1, winners - within * k)).sort().values


def keep_largest_(pre: Float[Tensor, "rows latents"], k: int) -> None:
    """Set all but the k largest of each row to 0, and rectify."""
    left_out = pre.shape[1] - k
    if left_out > 0:
        pre.scatter_(1, pre.topk(left_out, largest=False, sorted=False).indices, 0.0)
    pre.relu_()


def select_above(
    pre: Float[Tensor, "rows d_hidden"],
    least: Float[Tensor, "d_hidden"],
) -> tuple[Int[Tensor, "rows"], Int[Tensor, "nnz"], Float[Tensor, "nnz"]]:
    """Counts per row, ids and values of the entries above `least`."""
    kept = pre > least
    return kept.sum(1), kept.nonzero()[:, 1].contiguous(), pre[kept]


def transpose(indices: Int[Tensor, "nnz"], d_hidden: int) -> Columns:
    counts = torch.bincount(indices, minlength=d_hidden)
    return Columns(pad(counts.cumsum(0), (1, 0)), indices.argsort(stable=True))


def nested_sums(
    splits: Int[Tensor, "tokens groups_plus_1"],
    indices: Int[Tensor, "nnz"],
    values: Float[Tensor, "nnz"],
    W: Float[Tensor, "d_hidden d"],
) -> Float[Tensor, "groups tokens d"]:
    """`out[g, t]`: the sum of `values · W[indices]` over groups 0..g of token t."""
    tokens, groups = splits.shape[0], splits.shape[1] - 1
    bags = pad(splits[:, 1:].reshape(-1), (1, 0))
    parts = embedding_bag(indices, W, bags, mode="sum", per_sample_weights=values, include_last_offset=True)
    return parts.view(tokens, groups, -1).transpose(0, 1).cumsum(0) if groups > 1 else parts[None]


def nested_residuals(
    splits: Int[Tensor, "tokens groups_plus_1"],
    indices: Int[Tensor, "nnz"],
    values: Float[Tensor, "nnz"],
    W: Float[Tensor, "d_hidden d"],
    target: Float[Tensor, "tokens d"],
) -> tuple[Float[Tensor, "groups tokens d"], Float[Tensor, "groups tokens"]]:
    """`target − nested_sums(…)` and the squares of its rows."""
    residuals = target - nested_sums(splits, indices, values, W)
    return residuals, residuals.square().sum(2)


def reverse_sums(
    residuals: Float[Tensor, "groups tokens d"], weights: Float[Tensor, "groups"]
) -> Float[Tensor, "groups tokens d"]:
    """`out[g]`: the sum over g' ≥ g of `weights[g'] · residuals[g']`."""
    return (weights[:, None, None] * residuals).flip(0).cumsum(0).flip(0)


def encoder_gradients(
    columns: Columns,
    rows: Int[Tensor, "nnz"],
    values: Float[Tensor, "nnz"],
    grad: Float[Tensor, "nnz"],
    x: Float[Tensor, "tokens d_in"],
) -> tuple[Float[Tensor, "d_hidden d_in"], Float[Tensor, "d_hidden"]]:
    """`Gᵀ x` and `Gᵀ 1`, G being the gradient of the latents before their relu."""
    grad = grad * (values > 0)
    ones = x.new_ones(len(x), 1)
    return _column_sums(columns, rows, grad, x), _column_sums(columns, rows, grad, ones).view(-1)


def decoder_gradients(
    columns: Columns,
    rows: Int[Tensor, "nnz"],
    values: Float[Tensor, "nnz"],
    grad: Float[Tensor, "rows d_out"],
    W_dec: Float[Tensor, "d_hidden d_out"],
) -> tuple[Float[Tensor, "nnz"], Float[Tensor, "d_hidden d_out"]]:
    """The gradients of `Z W_dec` in the values of Z, `(grad W_decᵀ)` at its entries, and in W_dec."""
    order = columns.order
    shape = (len(W_dec), len(grad))
    pattern = torch.sparse_csr_tensor(
        columns.offsets, rows[order], torch.zeros_like(values), shape, check_invariants=False
    )
    dots = torch.sparse.sampled_addmm(pattern, W_dec, grad.T, beta=0.0).values()
    grad_values = torch.empty_like(values).index_copy_(0, order, dots)
    return grad_values, _column_sums(columns, rows, values, grad)


def _column_sums(columns: Columns, rows: Tensor, values: Tensor, x: Tensor) -> Tensor:
    order = columns.order
    return embedding_bag(
        rows[order],
        x,
        columns.offsets,
        mode="sum",
        per_sample_weights=values[order],
        include_last_offset=True,
    )
