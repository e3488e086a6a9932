"""Selection on CPU, compiled: what each function does is said in `cpu_torch`."""

# numba infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

import numpy as np
import torch
from torch import Tensor

from transcoders.kernels.parallel import jit_exact, part, run

_BLOCK = 16


def select_topk(products: Tensor, b_enc: Tensor, k: int, indices: Tensor, values: Tensor) -> None:
    run(_select_topk, products.numpy(), b_enc.detach().contiguous().numpy(), k, indices.numpy(), values.numpy())


def select_above(products: Tensor, b_enc: Tensor, least: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    counts = torch.empty(len(products), dtype=torch.int64)
    inputs = (products.numpy(), b_enc.detach().contiguous().numpy(), least.contiguous().numpy())
    run(_count_above, *inputs, counts.numpy())
    starts = counts.cumsum(0) - counts
    nnz = int(counts.sum())
    indices, values = torch.empty(nnz, dtype=torch.int64), products.new_empty(nnz)
    run(_fill_above, *inputs, starts.numpy(), indices.numpy(), values.numpy())
    return counts, indices, values


@jit_exact
def _select_topk(share, shares, products, b_enc, k, indices, values):
    """Of each row: maxima of blocks → a bound that at least k blocks reach → the few above it."""
    rows, d_hidden = products.shape
    blocks = (d_hidden + _BLOCK - 1) // _BLOCK
    maxima = np.empty(blocks, products.dtype)
    found = np.empty(d_hidden, np.int64)
    candidates = np.empty(d_hidden, products.dtype)
    bound = products[0, 0]
    for r in range(*part(rows, share, shares)):
        row = products[r]
        # Block j is {j, j + blocks, …}: maxima of whole vectors, no horizontal work.
        for j in range(blocks):
            maxima[j] = row[j] + b_enc[j]
        for start in range(blocks, d_hidden, blocks):
            # Slices, because indices that might be negative are not vectorised.
            block, bias = row[start : start + blocks], b_enc[start : start + blocks]
            for j in range(len(block)):
                v = block[j] + bias[j]
                maxima[j] = v if v > maxima[j] else maxima[j]
        bound = _bound(maxima, k, bound)
        count = 0
        for j in range(blocks):
            if maxima[j] >= bound:
                for i in range(j, d_hidden, blocks):
                    if row[i] + b_enc[i] >= bound:
                        found[count] = i
                        count += 1
        if count < k:  # NaNs compare with nothing: keep ids valid, the loss will tell
            found[:] = np.arange(d_hidden)
            count = d_hidden
        for n in range(count):
            candidates[n] = row[found[n]] + b_enc[found[n]]
        _keep_largest(found, candidates, count, k)
        kept = indices[r]
        kept[:] = found[:k]
        _sort(kept)
        for n in range(k):
            v = row[kept[n]] + b_enc[kept[n]]
            values[r, n] = 0 if v < 0 else v


@jit_exact
def _bound(maxima, k, guess):
    """A value that at least k of the maxima reach, and few more. `guess`: where to look first."""
    if len(maxima) < k:
        return maxima.dtype.type(-np.inf)
    low = high = maxima[0]
    for v in maxima:
        low = v if v < low else low
        high = v if v > high else high
    if not low < guess < high:
        guess = low + (high - low) / 2
    for _ in range(48):
        count = 0
        for v in maxima:
            count += 1 if v >= guess else 0
        if count >= k:
            low = guess
            if count <= k + 2:
                break
        else:
            high = guess
        guess = low + (high - low) / 2
        if not low < guess < high:
            break
    return low


@jit_exact
def _keep_largest(found, candidates, count, k):
    """Of the ids `found[:count]` bring the k with the largest values to the front; ties: lower ids."""
    if count - k > 16:  # rare: many equal values
        kth = np.partition(candidates[:count], count - k)[count - k]
        ids, ties = np.sort(found[:count]), k
        for v in candidates[:count]:
            ties -= 1 if v > kth else 0
        values = candidates[:count][np.argsort(found[:count])]
        kept = 0
        for n in range(count):
            if kept < k and (values[n] > kth or (values[n] == kth and ties > 0)):
                ties -= 1 if values[n] == kth else 0
                found[kept] = ids[n]
                kept += 1
        while kept < k:  # NaNs
            found[kept] = ids[kept]
            kept += 1
        return
    while count > k:
        worst = 0
        for n in range(1, count):
            v, least = candidates[n], candidates[worst]
            if v < least or (v == least and found[n] > found[worst]):
                worst = n
        count -= 1
        found[worst], candidates[worst] = found[count], candidates[count]


@jit_exact
def _sort(ids):
    """Insertion for the usual dozens; the library's for hundreds."""
    if len(ids) > 128:
        ids.sort()
        return
    for n in range(1, len(ids)):
        i = ids[n]
        m = n
        while m > 0 and ids[m - 1] > i:
            ids[m] = ids[m - 1]
            m -= 1
        ids[m] = i


@jit_exact
def _count_above(share, shares, products, b_enc, least, counts):
    for r in range(*part(len(products), share, shares)):
        row = products[r]
        count = 0
        for i in range(len(row)):
            count += 1 if row[i] + b_enc[i] > least[i] else 0
        counts[r] = count


@jit_exact
def _fill_above(share, shares, products, b_enc, least, starts, indices, values):
    for r in range(*part(len(products), share, shares)):
        row = products[r]
        end = starts[r]
        for i in range(len(row)):
            v = row[i] + b_enc[i]
            if v > least[i]:
                indices[end] = i
                values[end] = v
                end += 1
