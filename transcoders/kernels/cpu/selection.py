"""Selection on CPU, compiled."""

# numba infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from transcoders.kernels.cpu.parallel import jit_exact, part, run
from transcoders.kernels.latents import Group

_BLOCK = 16


def select_topk(pre: Tensor, groups: Sequence[Group], indices: Tensor, values: Tensor) -> None:
    run(_select_topk, pre.numpy(), np.array(groups), indices.numpy(), values.numpy())


def keep_largest_(pre: Tensor, k: int) -> None:
    run(_keep_largest_of_rows, pre.numpy(), k)


def select_above(pre: Tensor, least: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    counts = torch.empty(len(pre), dtype=torch.int64)
    inputs = (pre.numpy(), least.contiguous().numpy())
    run(_count_above, *inputs, counts.numpy())
    starts = counts.cumsum(0) - counts
    nnz = int(counts.sum())
    indices, values = torch.empty(nnz, dtype=torch.int64), pre.new_empty(nnz)
    run(_fill_above, *inputs, starts.numpy(), indices.numpy(), values.numpy())
    return counts, indices, values


@jit_exact
def _select_topk(share, shares, pre, groups, indices, values):
    """Write the k largest of each group in each row, after relu, with their ids ascending.

    Maxima of blocks give a bound that k blocks reach, and only the few numbers above it are compared.
    """
    rows, d_hidden = pre.shape
    maxima = np.empty(d_hidden // _BLOCK + 1, pre.dtype)
    candidate_ids = np.empty(d_hidden, np.int64)
    candidates = np.empty(d_hidden, pre.dtype)
    first = 0
    for g in range(len(groups)):
        start, stop, k = groups[g, 0], groups[g, 1], groups[g, 2]
        bound = pre[0, start]
        for r in range(*part(rows, share, shares)):
            row, ids = pre[r, start:stop], indices[r, first : first + k]
            bound = _largest(row, k, bound, maxima, candidate_ids, candidates)
            ids[:] = candidate_ids[:k]
            _sort(ids)
            for n in range(k):
                v = row[ids[n]]
                values[r, first + n] = 0 if v < 0 else v
                ids[n] += start
        first += k


@jit_exact
def _largest(row, k, guess, maxima, candidate_ids, candidates):
    """Bring the ids of the k largest to the front of `candidate_ids`, and return a bound that they reach.

    The bound is the next row's `guess`.
    """
    latents = len(row)
    blocks = (latents + _BLOCK - 1) // _BLOCK
    # Block j is {j, j + blocks, …}: maxima of whole vectors, no horizontal work.
    maxima = maxima[:blocks]
    maxima[:] = row[:blocks]
    for start in range(blocks, latents, blocks):
        # Slices, because indices that might be negative are not vectorised.
        block = row[start : start + blocks]
        for j in range(len(block)):
            maxima[j] = block[j] if block[j] > maxima[j] else maxima[j]
    bound = _bound(maxima, k, 2, guess)
    count = 0
    for j in range(blocks):
        if maxima[j] >= bound:
            for i in range(j, latents, blocks):
                if row[i] >= bound:
                    candidate_ids[count] = i
                    count += 1
    if count < k:  # NaNs compare with nothing: keep ids valid, the loss will tell
        candidate_ids[:latents] = np.arange(latents)
        count = latents
    for n in range(count):
        candidates[n] = row[candidate_ids[n]]
    _keep_largest(candidate_ids, candidates, count, k)
    return bound


@jit_exact
def _keep_largest_of_rows(share, shares, pre, k):
    zero = pre.dtype.type(0)
    guess = zero
    for r in range(*part(len(pre), share, shares)):
        row = pre[r]
        positive = 0
        for j in range(len(row)):
            row[j] = row[j] if row[j] > 0 else zero
            positive += 1 if row[j] > 0 else 0
        if positive <= k:
            continue
        guess = _bound(row, k, 0, guess)
        reached = 0
        for j in range(len(row)):
            row[j] = row[j] if row[j] >= guess else zero
            reached += 1 if row[j] > 0 else 0
        for _ in range(reached - k):  # equal values
            worst = -1
            for j in range(len(row)):
                if row[j] > 0 and (worst < 0 or row[j] <= row[worst]):
                    worst = j
            row[worst] = 0


@jit_exact
def _bound(values, k, slack, guess):
    """Return a number that at least k of the values reach, and at most `slack` more (ties apart).

    The search begins at `guess`.
    """
    low, high = -np.inf, np.inf
    guess = guess if np.isfinite(guess) else values.dtype.type(0)
    step = abs(guess) / 32 + values.dtype.type(1e-6)
    for _ in range(96):
        count = 0
        for v in values:
            count += 1 if v >= guess else 0
        if count >= k:
            low = guess
            if count <= k + slack:
                break
        else:
            high = guess
        before = guess
        if low > -np.inf and high < np.inf:
            guess = low + (high - low) / 2
        else:  # no border on this side yet
            guess = guess + step if count >= k else guess - step
            step *= 2
        if guess == before:
            break
    return values.dtype.type(low)


@jit_exact
def _keep_largest(candidate_ids, candidates, count, k):
    """Bring the k of `candidate_ids[:count]` that have the largest values to the front; ties go to lower ids."""
    if count - k > 16:  # rare: many equal values
        kth = np.partition(candidates[:count], count - k)[count - k]
        ids, ties = np.sort(candidate_ids[:count]), k
        for v in candidates[:count]:
            ties -= 1 if v > kth else 0
        values = candidates[:count][np.argsort(candidate_ids[:count])]
        written = 0
        for n in range(count):
            if written < k and (values[n] > kth or (values[n] == kth and ties > 0)):
                ties -= 1 if values[n] == kth else 0
                candidate_ids[written] = ids[n]
                written += 1
        while written < k:  # NaNs
            candidate_ids[written] = ids[written]
            written += 1
        return
    while count > k:
        worst = 0
        for n in range(1, count):
            v, least = candidates[n], candidates[worst]
            if v < least or (v == least and candidate_ids[n] > candidate_ids[worst]):
                worst = n
        count -= 1
        candidate_ids[worst], candidates[worst] = candidate_ids[count], candidates[count]


@jit_exact
def _sort(ids):
    """Sort the ids: by insertion for the usual dozens, by the library's algorithm for hundreds."""
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
def _count_above(share, shares, pre, least, counts):
    for r in range(*part(len(pre), share, shares)):
        row = pre[r]
        count = 0
        for i in range(len(row)):
            count += 1 if row[i] > least[i] else 0
        counts[r] = count


@jit_exact
def _fill_above(share, shares, pre, least, starts, indices, values):
    for r in range(*part(len(pre), share, shares)):
        row = pre[r]
        end = starts[r]
        for i in range(len(row)):
            v = row[i]
            if v > least[i]:
                indices[end] = i
                values[end] = v
                end += 1
