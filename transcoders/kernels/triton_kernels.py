"""The Triton programs. `cuda` launches them; `cpu_torch` says in torch what each computes.

No program uses atomics, so results are the same bit for bit from run to run. Sums are in float32.
"""

# Triton infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,attr-defined"

import triton
import triton.language as tl


@triton.jit
def _pre(products, b_enc, row, ids, d_hidden):
    inside = ids < d_hidden
    v = tl.load(products + row * d_hidden + ids, mask=inside, other=float("-inf")).to(tl.float32)
    return v + tl.load(b_enc + ids, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _key(v):
    """float32 → uint32 in the same order."""
    bits = v.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def _kth_key(keys, k):
    """The largest key that at least k of them reach: 32 counts, bit by bit, instead of a sort."""
    kth = tl.full([], 0, tl.uint32)
    for bit in range(32):
        larger = kth | (tl.full([], 1, tl.uint32) << (31 - bit))
        kth = tl.where(tl.sum((keys >= larger).to(tl.int32), 0) >= k, larger, kth)
    return kth


@triton.jit
def _emit(ids, v, keep, place, out, indices, values):
    tl.store(indices + out + place, ids.to(tl.int64), mask=keep)
    tl.store(values + out + place, tl.maximum(v, 0.0), mask=keep)


@triton.jit
def select_topk(products, b_enc, indices, values, found_ids, d_hidden, k, TILE: tl.constexpr, CAP: tl.constexpr):
    """One row: maxima of strided blocks → a bound that k blocks reach → the few above it.

    When more than CAP reach it (many equal values, which bfloat16 makes possible), the row itself
    is searched. Ties go to the lower id.
    """
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, TILE)
    maxima = tl.full([TILE], 0, tl.uint32)
    for start in range(0, d_hidden, TILE):
        keys = _key(_pre(products, b_enc, row, start + lane, d_hidden))
        maxima = tl.maximum(maxima, keys)
    bound = _kth_key(maxima, k)
    found = 0
    for start in range(0, d_hidden, TILE):
        ids = start + lane
        hit = (_key(_pre(products, b_enc, row, ids, d_hidden)) >= bound) & (ids < d_hidden)
        place = found + tl.cumsum(hit.to(tl.int32), 0) - 1
        tl.store(found_ids + row * CAP + place, ids, mask=hit & (place < CAP))
        found += tl.sum(hit.to(tl.int32), 0)
    tl.debug_barrier()  # other threads of this program wrote the ids that are read now
    if found <= CAP:
        slot = tl.arange(0, CAP)
        ids = tl.load(found_ids + row * CAP + slot, mask=slot < found, other=d_hidden)
        v = _pre(products, b_enc, row, ids, d_hidden)
        keys = tl.where(slot < found, _key(v), 0)
        kth = _kth_key(keys, k)
        above = keys > kth
        equal = (keys == kth) & (slot < found)
        ties = k - tl.sum(above.to(tl.int32), 0)
        keep = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= ties))
        _emit(ids, v, keep, tl.cumsum(keep.to(tl.int32), 0) - 1, row * k, indices, values)
    else:
        kth = tl.full([], 0, tl.uint32)
        reached = d_hidden  # how many reach kth
        above_count = 0  # how many exceed it
        for bit in range(32):
            larger = kth | (tl.full([], 1, tl.uint32) << (31 - bit))
            count = 0
            for start in range(0, d_hidden, TILE):
                ids = start + lane
                hit = (_key(_pre(products, b_enc, row, ids, d_hidden)) >= larger) & (ids < d_hidden)
                count += tl.sum(hit.to(tl.int32), 0)
            kth = tl.where(count >= k, larger, kth)
            reached = tl.where(count >= k, count, reached)
            above_count = tl.where(count >= k, above_count, count)
        ties = k - above_count
        written = 0
        seen = 0
        for start in range(0, d_hidden, TILE):
            ids = start + lane
            v = _pre(products, b_enc, row, ids, d_hidden)
            keys = _key(v)
            equal = (keys == kth) & (ids < d_hidden)
            keep = (keys > kth) & (ids < d_hidden)
            keep = keep | (equal & (seen + tl.cumsum(equal.to(tl.int32), 0) <= ties))
            place = written + tl.cumsum(keep.to(tl.int32), 0) - 1
            _emit(ids, v, keep, place, row * k, indices, values)
            written += tl.sum(keep.to(tl.int32), 0)
            seen += tl.sum(equal.to(tl.int32), 0)


@triton.jit
def count_above(products, b_enc, least, counts, d_hidden, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, TILE)
    count = 0
    for start in range(0, d_hidden, TILE):
        ids = start + lane
        limit = tl.load(least + ids, mask=ids < d_hidden, other=float("inf"))
        hit = _pre(products, b_enc, row, ids, d_hidden) > limit
        count += tl.sum(hit.to(tl.int32), 0)
    tl.store(counts + row, count.to(tl.int64))


@triton.jit
def fill_above(products, b_enc, least, starts, indices, values, d_hidden, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, TILE)
    out = tl.load(starts + row)
    for start in range(0, d_hidden, TILE):
        ids = start + lane
        limit = tl.load(least + ids, mask=ids < d_hidden, other=float("inf"))
        v = _pre(products, b_enc, row, ids, d_hidden)
        hit = v > limit
        tl.store(indices + out + tl.cumsum(hit.to(tl.int32), 0) - 1, ids.to(tl.int64), mask=hit)
        tl.store(values + out + tl.cumsum(hit.to(tl.int32), 0) - 1, v, mask=hit)
        out += tl.sum(hit.to(tl.int32), 0)


@triton.jit
def nested_sums(splits, indices, values, W, out, tokens, d, GROUPS: tl.constexpr, D: tl.constexpr):
    """out[g, t]: rows of W times values, gathered and summed over groups 0..g of token t."""
    t = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * D + tl.arange(0, D)
    inside = column < d
    total = tl.zeros([D], tl.float32)
    for g in range(GROUPS):
        start = tl.load(splits + t * (GROUPS + 1) + g)
        stop = tl.load(splits + t * (GROUPS + 1) + g + 1)
        for entry in range(start, stop):
            latent = tl.load(indices + entry)
            w = tl.load(W + latent * d + column, mask=inside, other=0.0).to(tl.float32)
            total += tl.load(values + entry) * w
        tl.store(out + (g * tokens + t) * d + column, total, mask=inside)


@triton.jit
def entry_dots(splits, indices, grad, W, dots, tokens, d, GROUPS: tl.constexpr, D: tl.constexpr):
    """dots[entry] = grad[g, t] · W[latent]: D covers the whole row."""
    t = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, D)
    inside = column < d
    for g in range(GROUPS):
        start = tl.load(splits + t * (GROUPS + 1) + g)
        stop = tl.load(splits + t * (GROUPS + 1) + g + 1)
        source = tl.load(grad + (g * tokens + t) * d + column, mask=inside, other=0.0)
        for entry in range(start, stop):
            latent = tl.load(indices + entry)
            w = tl.load(W + latent * d + column, mask=inside, other=0.0).to(tl.float32)
            tl.store(dots + entry, tl.sum(source.to(tl.float32) * w, 0))


@triton.jit
def column_sums(offsets, order, rows, values, x, sums, totals, d, STEP: tl.constexpr, D: tl.constexpr):
    """sums[latent] = Σ values · x[rows] and totals[latent] = Σ values over a latent's entries."""
    latent = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    column = block * D + tl.arange(0, D)
    inside = column < d
    start, stop = tl.load(offsets + latent), tl.load(offsets + latent + 1)
    total = tl.zeros([D], tl.float32)
    weight = tl.zeros([STEP], tl.float32)
    for first in range(start, stop, STEP):
        n = first + tl.arange(0, STEP)
        some = n < stop
        entry = tl.load(order + n, mask=some, other=0)
        row = tl.load(rows + entry, mask=some, other=0)
        v = tl.load(values + entry, mask=some, other=0.0)
        tile = tl.load(x + row[:, None] * d + column[None, :], mask=some[:, None] & inside[None, :], other=0.0)
        total += tl.sum(tile.to(tl.float32) * v[:, None], 0)
        weight += v
    tl.store(sums + latent * d + column, total, mask=inside)
    if block == 0:
        tl.store(totals + latent, tl.sum(weight, 0))
