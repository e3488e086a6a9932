"""Reading a store: in order for evaluation, shuffled through a bounded buffer for training."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from transcoders.activations.store import CHUNK_ROWS, SHARD_ROWS, Store
from transcoders.core.buffers import empty


class Batch(NamedTuple):
    """Hold the MLP inputs and outputs of some tokens, float32, raw units."""

    x: Float[Tensor, "tokens d"]
    y: Float[Tensor, "tokens d"]


class LabelledBatch(NamedTuple):
    """Hold a batch in store order, with each token's document and token id."""

    x: Float[Tensor, "tokens d"]
    y: Float[Tensor, "tokens d"]
    document: NDArray[np.int32]
    token: NDArray[np.int32]


def _chunks(store: Store) -> list[tuple[int, int]]:
    return [(s, min(s + CHUNK_ROWS, store.tokens)) for s in range(0, store.tokens, CHUNK_ROWS)]


def _counts(store: Store, documents: NDArray[np.bool_], start: int) -> NDArray[np.int64]:
    """Count the rows of the chosen documents in each chunk of the shard at ``start``; labels are read by shards."""
    chosen = store.members(documents, start, min(start + SHARD_ROWS, store.tokens))
    return np.add.reduceat(chosen.astype(np.int64), np.arange(0, len(chosen), CHUNK_ROWS))


def _with_outputs(store: Store, held: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return x and y, given those of them that ``store.held`` names."""
    x, *rest = held
    return x, rest[0] if rest else store.recompute(x)


def _wide(parts: Sequence[Tensor], share: slice) -> Tensor:
    """Return the rows ``share`` of all parts together, in float32."""
    values = (parts[0] if len(parts) == 1 else torch.cat(list(parts)))[share]
    return empty(*values.shape, like=values.new_empty(0, dtype=torch.float32)).copy_(values)


def ordered_batches(
    store: Store, documents: NDArray[np.bool_], limit: int, device: torch.device
) -> Iterator[LabelledBatch]:
    """Yield at most ``limit`` tokens of the chosen documents (a mask over document ids), a chunk a batch.

    Contexts were shuffled when they were collected, so the first tokens are a fair sample.
    """
    left = limit
    for start, stop in _chunks(store):
        owner = store.labels("document", start, stop)
        rows = np.flatnonzero(store.members(documents, start, stop))[:left]
        if len(rows) == 0:
            continue
        left -= len(rows)
        held = [store.rows(name, start, stop)[torch.from_numpy(rows)].to(device).float() for name in store.held]
        x, y = _with_outputs(store, held)
        yield LabelledBatch(x, y, owner[rows], store.labels("token", start, stop)[rows])
        if left == 0:
            return


class _Plan(NamedTuple):
    """Say what the buffer holds next, and where in it to begin."""

    epoch: int
    number: int
    """Of the load within its epoch."""
    chunks: NDArray[np.int64]
    skip: int
    """Rows of the load that were given before."""
    last: bool
    """Whether the epoch ends with it."""


class _Load(NamedTuple):
    """Hold the part of the store that the buffer has at a time, on the device, and the order to take it in."""

    values: list[Tensor]
    """x, and y where it is stored, in the store's dtype."""
    order: Tensor
    arrived: torch.cuda.Event | None
    """When it has been copied to the GPU."""

    def wait(self) -> None:
        """Let the GPU's work from here on come after the copy."""
        if self.arrived is not None:
            stream = torch.cuda.current_stream(self.order.device)
            stream.wait_event(self.arrived)
            for tensor in (*self.values, self.order):
                tensor.record_stream(stream)  # its memory is the copying stream's


class ShuffledReader:
    """Read endless batches of the chosen documents' tokens, in an order that only the seed decides.

    An epoch is a permutation of the store's chunks, cut into loads of ``buffer_tokens`` rows; rows
    are permuted within a load. Contexts lie shuffled in the store, so this mixes documents twice.
    Memory is two loads, whatever the store's size, on a GPU if that is the device: rows are gathered there,
    and the host only reads. ``batches(n)`` onwards can be had without reading
    what comes before, which makes resuming exact and cheap. The last, incomplete batch of an epoch
    is left out.
    """

    def __init__(
        self,
        store: Store,
        documents: NDArray[np.bool_],
        *,
        batch_size: int,
        buffer_tokens: int,
        seed: int,
        device: torch.device,
        share: slice = slice(None),
    ) -> None:
        """Count the rows of ``documents``; of each batch of ``batch_size`` the rows ``share`` will be given."""
        self._share = share
        self._store, self._documents, self._seed, self._device = store, documents, seed, device
        self.batch_size = batch_size
        self._chunks = _chunks(store)
        self._counts = np.concatenate([_counts(store, documents, s) for s in range(0, store.tokens, SHARD_ROWS)])
        self._chunks_per_load = max(1, buffer_tokens // CHUNK_ROWS)
        self.tokens = int(self._counts.sum())
        self.batches_per_epoch = self.tokens // batch_size
        self.seconds_waited = 0.0
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def _loads(self, epoch: int) -> list[NDArray[np.int64]]:
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._chunks))
        return [order[i : i + self._chunks_per_load] for i in range(0, len(order), self._chunks_per_load)]

    def _read(self, plan: _Plan) -> _Load:
        store, ends = self._store, self._counts[plan.chunks].cumsum()
        shape = (int(ends[-1]), store.d_model)
        if self._copies is None:
            values = [empty(*shape, like=torch.empty(0, dtype=store.dtype)) for _ in store.held]
        else:
            values = [torch.empty(shape, dtype=store.dtype, pin_memory=True) for _ in store.held]

        def fill(index: int, end: int) -> None:
            start, stop = self._chunks[index]
            rows = torch.from_numpy(np.flatnonzero(store.members(self._documents, start, stop)))
            for name, out in zip(store.held, values, strict=True):
                torch.index_select(store.rows(name, start, stop), 0, rows, out=out[end - len(rows) : end])

        with ThreadPoolExecutor(store.requests) as pool:
            list(pool.map(fill, plan.chunks, ends.tolist()))
        rng = np.random.default_rng([self._seed, plan.epoch, plan.number])
        order = torch.from_numpy(rng.permutation(len(values[0])))
        if self._copies is None:
            return _Load(values, order, None)
        with torch.cuda.stream(self._copies):
            placed = [value.to(self._device, non_blocking=True) for value in values]
            return _Load(placed, order.to(self._device), self._copies.record_event())

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yield batch number ``first`` (counted over epochs) and all after it."""
        epoch, skipped = divmod(first, self.batches_per_epoch)
        skip = skipped * self.batch_size
        with ThreadPoolExecutor(max_workers=1) as pool:
            yield from self._batches(pool, epoch, skip)

    def _batches(self, pool: ThreadPoolExecutor, epoch: int, skip: int) -> Iterator[Batch]:
        plans = self._plans(epoch, skip)
        upcoming = self._submit(pool, next(plans))
        carried: list[list[Tensor]] = []
        while True:
            plan, future = upcoming
            start = plan.skip
            began = time.perf_counter()
            load = future.result()
            self.seconds_waited += time.perf_counter() - began
            load.wait()
            upcoming = self._submit(pool, next(plans))
            while start < len(load.order):
                missing = self.batch_size - sum(len(values[0]) for values in carried)
                rows = load.order[start : start + missing]
                start += len(rows)
                carried.append([value.index_select(0, rows) for value in load.values])
                if len(rows) == missing:
                    held = [_wide(part, self._share) for part in zip(*carried, strict=True)]
                    carried = []
                    # y is recomputed here, not in the reading thread, where a step's matmul precision could reach it.
                    yield Batch(*_with_outputs(self._store, held))
            if plan.last:
                carried = []

    def _plans(self, epoch: int, skip: int) -> Iterator[_Plan]:
        """Yield the plans of all loads from row ``skip`` of ``epoch`` on."""
        while True:
            loads = self._loads(epoch)
            for number, chunks in enumerate(loads):
                rows = int(self._counts[chunks].sum())
                if skip >= rows and rows:
                    skip -= rows
                    continue
                yield _Plan(epoch, number, chunks, skip, number == len(loads) - 1)
                skip = 0
            epoch, skip = epoch + 1, 0

    def _submit(self, pool: ThreadPoolExecutor, plan: _Plan) -> tuple[_Plan, "Future[_Load]"]:
        return plan, pool.submit(self._read, plan)
