"""Selections in torch operations that the CPU and CUDA paths share."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transcoders.kernels.latents import fixed_offsets, offsets_of

Selected = tuple[Tensor, Tensor, Tensor]  # offsets, indices, values after the relu
# least [d_hidden] → counts per row, ids and values of the pre-activations above it
Above = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def largest_of_batch(
    products: Float[Tensor, "tokens d_hidden"],
    k: int,
    above: Above,
    b_enc: Float[Tensor, "d_hidden"] | None = None,
) -> Selected:
    """Select exactly the `k · tokens` largest of `products`, to which `b_enc` is added where it is given.

    A sample of the tokens suggests a bound that a few more than wanted reach, and only these are
    sorted. Where too few reach it (tokens differ much), a lower bound follows; the last takes all.
    """
    tokens, d_hidden = products.shape
    if not tokens:
        counts, indices, values = above(products.new_zeros(d_hidden))
        return offsets_of(counts), indices, values
    wanted = k * tokens
    sample = products[:: max(1, tokens // 256)]
    sample = (sample if b_enc is None else sample + b_enc).flatten()
    share = len(sample) / products.numel()
    best = sample.topk(min(len(sample), int(4 * wanted * share) + 16)).values
    lowest = best.new_tensor(-torch.inf)
    for bound in (*(best[min(len(best) - 1, int(m * wanted * share))] for m in (1.1, 1.5, 4)), lowest):
        # `nextafter`, for `above` is strict and the bound itself may be among the wanted.
        least = bound.nextafter(lowest)
        counts, indices, values = above(least.expand(d_hidden))
        if len(values) >= wanted:
            break
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[values.topk(wanted, sorted=False).indices] = True
    offsets = offsets_of(mask)[offsets_of(counts)]
    return offsets, indices[mask], values[mask].relu_()


def groupmax(pre: Float[Tensor, "tokens d_hidden"], k: int) -> Selected:
    """Select the largest of each of k groups of neighbouring latents."""
    tokens, d_hidden = pre.shape
    values, winners = pre.view(tokens, k, d_hidden // k).max(2)
    ids = winners + torch.arange(0, d_hidden, d_hidden // k, device=pre.device)
    # Sums are float32 at least, also of bfloat16 products.
    wide = torch.promote_types(values.dtype, torch.float32)
    return fixed_offsets(ids), ids.view(-1), values.to(wide).relu().view(-1)


def rows_of(splits: Int[Tensor, "tokens groups_plus_1"], nnz: int) -> Int[Tensor, "nnz"]:
    """Return the row of `[groups · tokens, d]` that each entry belongs to."""
    tokens, groups = splits.shape[0], splits.shape[1] - 1
    row_of_bag = torch.arange(groups * tokens, device=splits.device).view(groups, tokens).T
    return row_of_bag.reshape(-1).repeat_interleave(splits.diff().view(-1), output_size=nnz)
