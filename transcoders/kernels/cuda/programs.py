"""The Triton programs. `backend` launches them; the reference says what they come to.

No program uses atomics, so results are the same bit for bit from run to run. Sums are in float32.
"""

# Triton infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,attr-defined"

import triton
import triton.language as tl


@triton.jit
def _pre(products, b_enc, row, ids, stop, d_hidden):
    inside = ids < stop
    v = tl.load(products + row * d_hidden + ids, mask=inside, other=float("-inf")).to(tl.float32)
    return v + tl.load(b_enc + ids, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _key(v):
    """Map float32 to uint32 in the same order."""
    bits = v.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def _kth_key(keys, k):
    """Return the largest key that at least k of them reach, by 32 counts, bit by bit, instead of a sort."""
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
def _select_from_row(products, b_enc, indices, values, row, out, d_hidden, begin, stop, k, TILE: tl.constexpr):
    """Write the k largest of a full row, by counts bit by bit: for rows in which too many reach the bound."""
    lane = tl.arange(0, TILE)
    kth = tl.full([], 0, tl.uint32)
    above_count = 0  # how many exceed it
    for bit in range(32):
        larger = kth | (tl.full([], 1, tl.uint32) << (31 - bit))
        count = 0
        for start in range(begin, stop, TILE):
            ids = start + lane
            hit = (_key(_pre(products, b_enc, row, ids, stop, d_hidden)) >= larger) & (ids < stop)
            count += tl.sum(hit.to(tl.int32), 0)
        kth = tl.where(count >= k, larger, kth)
        above_count = tl.where(count >= k, above_count, count)
    ties = k - above_count
    written = 0
    seen = 0
    for start in range(begin, stop, TILE):
        ids = start + lane
        v = _pre(products, b_enc, row, ids, stop, d_hidden)
        keys = _key(v)
        equal = (keys == kth) & (ids < stop)
        keep = (keys > kth) & (ids < stop)
        keep = keep | (equal & (seen + tl.cumsum(equal.to(tl.int32), 0) <= ties))
        place = written + tl.cumsum(keep.to(tl.int32), 0) - 1
        _emit(ids, v, keep, place, out, indices, values)
        written += tl.sum(keep.to(tl.int32), 0)
        seen += tl.sum(equal.to(tl.int32), 0)


@triton.jit
def _ids_that_reach(
    products,
    b_enc,
    at,
    row,
    lane,
    maxima,
    bound,
    d_hidden,
    begin,
    stop,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
    CAP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write to `at + LANES` the ids of one row's latents that reach the bound, ascending within a chunk.

    Only blocks whose maximum reaches it are read again, CHUNK latents at a time. Returns how many ids there are, and a
    number above CAP where they, or the blocks, are more than `at` has room for.
    """
    reach = maxima >= bound
    lanes = tl.sum(reach.to(tl.int32), 0)
    reached = CAP + 1
    if lanes <= LANES:
        tl.store(at + tl.cumsum(reach.to(tl.int32), 0) - 1, lane, mask=reach)
        tl.debug_barrier()  # other threads of this program wrote the blocks that are read now
        reached = 0
        slot = tl.arange(0, CHUNK)
        block = tl.load(at + slot % LANES, mask=slot % LANES < lanes, other=0)
        block = tl.where(slot % LANES < lanes, block, d_hidden)  # past every row's end
        for start in range(begin, stop, TILE * (CHUNK // LANES)):
            ids = start + slot // LANES * TILE + block
            hit = (_key(_pre(products, b_enc, row, ids, stop, d_hidden)) >= bound) & (ids < stop)
            place = reached + tl.cumsum(hit.to(tl.int32), 0) - 1
            tl.store(at + LANES + place, ids, mask=hit & (place < CAP))
            reached += tl.sum(hit.to(tl.int32), 0)
        tl.debug_barrier()  # and now the ids
    return reached


@triton.jit
def select_topk(
    products,
    b_enc,
    indices,
    values,
    scratch,
    d_hidden,
    begin,
    stop,
    k,
    first,
    k_all,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
    CAP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write the k largest of the latents begin..stop of one row, after relu, with their ids ascending.

    Maxima of strided blocks give a bound that k blocks reach, and only the few latents above it are compared.
    Block j has the latents begin + j, begin + j + TILE, …. The k largest go to places first.. of the row's k_all. When
    more than LANES blocks or more than CAP latents reach the bound (many equal values, which bfloat16 makes possible),
    the row itself is searched. Ties go to the lower id. `scratch` has LANES + CAP numbers a row.
    """
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, TILE)
    maxima = tl.full([TILE], 0, tl.uint32)
    for start in range(begin, stop, TILE):
        keys = _key(_pre(products, b_enc, row, start + lane, stop, d_hidden))
        maxima = tl.maximum(maxima, keys)
    bound = _kth_key(maxima, k)
    at = scratch + row * (LANES + CAP)
    reached = _ids_that_reach(
        products, b_enc, at, row, lane, maxima, bound, d_hidden, begin, stop, TILE, LANES, CAP, CHUNK
    )
    if reached <= CAP:
        place = tl.arange(0, CAP)
        ids = tl.load(at + LANES + place, mask=place < reached, other=stop)
        v = _pre(products, b_enc, row, ids, stop, d_hidden)
        keys = tl.where(place < reached, _key(v), 0)
        kth = _kth_key(keys, k)
        above = keys > kth
        equal = (keys == kth) & (place < reached)
        ties = k - tl.sum(above.to(tl.int32), 0)
        keep = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= ties))
        _emit(ids, v, keep, tl.cumsum(keep.to(tl.int32), 0) - 1, row * k_all + first, indices, values)
    else:
        out = row * k_all + first
        _select_from_row(products, b_enc, indices, values, row, out, d_hidden, begin, stop, k, TILE)


@triton.jit
def count_above(products, b_enc, least, counts, d_hidden, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, TILE)
    count = 0
    for start in range(0, d_hidden, TILE):
        ids = start + lane
        limit = tl.load(least + ids, mask=ids < d_hidden, other=float("inf"))
        hit = _pre(products, b_enc, row, ids, d_hidden, d_hidden) > limit
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
        v = _pre(products, b_enc, row, ids, d_hidden, d_hidden)
        hit = v > limit
        tl.store(indices + out + tl.cumsum(hit.to(tl.int32), 0) - 1, ids.to(tl.int64), mask=hit)
        tl.store(values + out + tl.cumsum(hit.to(tl.int32), 0) - 1, v, mask=hit)
        out += tl.sum(hit.to(tl.int32), 0)


@triton.jit
def keep_largest(pre, latents, k, TILE: tl.constexpr):
    """Set all but the k largest of one row, and negative numbers, to 0; TILE covers it, ties go to the lower id."""
    at = tl.program_id(0).to(tl.int64) * latents + tl.arange(0, TILE)
    inside = tl.arange(0, TILE) < latents
    v = tl.load(pre + at, mask=inside, other=float("-inf")).to(tl.float32)
    keys = _key(v)
    kth = _kth_key(keys, k)
    above, equal = keys > kth, (keys == kth) & inside
    ties = k - tl.sum(above.to(tl.int32), 0)
    keep = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= ties))
    tl.store(pre + at, tl.where(keep, tl.maximum(v, 0.0), 0.0), mask=inside)


@triton.jit
def nested_sums(
    splits,
    indices,
    values,
    W,
    target,
    out,
    squares,
    tokens,
    d,
    GROUPS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    STEP: tl.constexpr,
    D: tl.constexpr,
):
    """Write out[g, t], the sum of rows of W times values over the entries of groups 0..g of token t.

    With RESIDUAL it is the target less that, and squares[block, g, t] the sum of its squares in a block of columns.
    """
    t, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = block * D + tl.arange(0, D)
    inside = column < d
    total = tl.zeros([D], tl.float32)
    if RESIDUAL:
        total += tl.load(target + t * d + column, mask=inside, other=0.0)
    for g in range(GROUPS):
        start = tl.load(splits + t * (GROUPS + 1) + g)
        stop = tl.load(splits + t * (GROUPS + 1) + g + 1)
        for first in range(start, stop, STEP):  # several rows on their way at a time
            n = first + tl.arange(0, STEP)
            latent = tl.load(indices + n, mask=n < stop, other=0)
            v = tl.load(values + n, mask=n < stop, other=0.0)
            some = (n < stop)[:, None] & inside[None, :]
            w = tl.load(W + latent[:, None] * d + column[None, :], mask=some, other=0.0).to(tl.float32)
            total += tl.sum((-v if RESIDUAL else v)[:, None] * w, 0)
        tl.store(out + (g * tokens + t) * d + column, total, mask=inside)
        if RESIDUAL:
            tl.store(squares + (block * GROUPS + g) * tokens + t, tl.sum(total * total, 0))


@triton.jit
def reverse_sums(residuals, weights, out, numel, GROUPS: tl.constexpr, TILE: tl.constexpr):
    """Write out[g], the sum over g' >= g of weights[g'] · residuals[g']."""
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = at < numel
    total = tl.zeros([TILE], tl.float32)
    for i in range(GROUPS):
        g = tl.cast(GROUPS - 1 - i, tl.int64)  # many groups of many tokens pass 2^31 numbers
        total += tl.load(weights + g) * tl.load(residuals + g * numel + at, mask=inside, other=0.0)
        tl.store(out + g * numel + at, total, mask=inside)


@triton.jit
def column_sums(
    schedule,
    offsets,
    order,
    rows,
    values,
    x,
    W,
    sums,
    totals,
    dots,
    d,
    nnz,
    DOTS: tl.constexpr,
    STEP: tl.constexpr,
    D: tl.constexpr,
):
    """Write sums[latent] = Σ values · x[rows] over a latent's entries, and totals[latent] = Σ values.

    With DOTS instead of totals: dots[block, n] = x[rows] · W[latent] over a block of columns, for the n-th of the
    entries by latent. One reading of a row of x serves both. `schedule` has the latents with the most entries first,
    so that none of them is begun when all others are done.
    """
    latent = tl.load(schedule + tl.program_id(0))
    block = tl.program_id(1)
    column = block * D + tl.arange(0, D)
    inside = column < d
    start, stop = tl.load(offsets + latent), tl.load(offsets + latent + 1)
    total = tl.zeros([D], tl.float32)
    weight = tl.zeros([STEP], tl.float32)
    if DOTS:
        direction = tl.load(W + latent * d + column, mask=inside, other=0.0).to(tl.float32)
    for first in range(start, stop, STEP):
        n = first + tl.arange(0, STEP)
        some = n < stop
        entry = tl.load(order + n, mask=some, other=0)
        row = tl.load(rows + entry, mask=some, other=0)
        v = tl.load(values + entry, mask=some, other=0.0)
        tile = tl.load(x + row[:, None] * d + column[None, :], mask=some[:, None] & inside[None, :], other=0.0)
        tile = tile.to(tl.float32)
        total += tl.sum(tile * v[:, None], 0)
        if DOTS:
            tl.store(dots + block.to(tl.int64) * nnz + n, tl.sum(tile * direction[None, :], 1), mask=some)
        else:
            weight += v
    tl.store(sums + latent * d + column, total, mask=inside)
    if not DOTS and block == 0:
        tl.store(totals + latent, tl.sum(weight, 0))
