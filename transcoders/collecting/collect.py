"""Running the model over contexts and storing what enters and leaves its MLPs, on one process or on many.

A shard of a store is the unit of work: each process computes and writes whole shards, and gathers nothing. A mark
beside an unfinished store says that a shard is written, and holds its statistics; a rerun does the others only.
"""

import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from tqdm import tqdm

from transcoders.activations import store
from transcoders.activations.moments import Moments, chunk_moments, statistics
from transcoders.collecting.outliers import within_limits
from transcoders.collecting.rows import Batches, Rows
from transcoders.collecting.settings import CollectSettings
from transcoders.core.errors import UserError
from transcoders.core.files import replacing
from transcoders.core.places import Place, explain_errors
from transcoders.distributed.ranks import ALONE, Ranks
from transcoders.language.taps import Tap

log = logging.getLogger(__name__)
DONE = "done"
"""Folder in the notes on an unfinished store: a mark for every shard that is written, with its statistics."""


@torch.inference_mode()
def collect(
    batches: Batches,
    settings: CollectSettings,
    paths: Sequence[Place],
    attributes: list[dict[str, Any]],
    ranks: Ranks = ALONE,
) -> None:
    """Write one complete store per tap of ``batches`` to ``paths``, continuing what an earlier call began.

    All layers share one forward pass. A batch runs whole wherever one of its rows is needed, so two processes
    compute one that lies across their border; the stores have the same bytes whoever writes them.

    Raises:
        UserError: a value does not fit the dtype, or the disk is too small.
    """
    d_model = int(batches.bridge.cfg.d_model)
    if ranks.first:
        _create(batches, settings, paths, d_model)
    ranks.world.wait()
    starts = np.concatenate([[0], batches.counts().cumsum()])
    writers = [ShardWriter(path, tap, starts, settings, ranks) for path, tap in zip(paths, batches.taps, strict=True)]
    _write(batches, writers, visible=ranks.first)
    ranks.world.wait()
    if ranks.first:
        for writer, extra in zip(writers, attributes, strict=True):
            writer.finish({**extra, "d_model": d_model})


def _create(batches: Batches, settings: CollectSettings, paths: Sequence[Place], d_model: int) -> None:
    missing = [path for path in paths if not (_done(path).is_dir() and store.is_begun(path))]
    check_disk(missing, settings, d_model, batches.capacity)
    for path in missing:
        shutil.rmtree(_done(path), ignore_errors=True)
        store.create(
            path,
            d_model,
            settings.dtype,
            batches.capacity,
            {},
            codec=settings.codec,
            outputs=settings.outputs,
            norms=settings.max_norm is not None,
        )
        _done(path).mkdir(parents=True)


def _done(path: Place) -> Path:
    return store.notes_folder(path) / DONE


def _write(batches: Batches, writers: list["ShardWriter"], *, visible: bool) -> None:
    """Run the batches that some missing shard needs; shards are written by a second thread meanwhile."""
    needed = [number for number in range(len(batches.plan)) if any(writer.shards_of(number) for writer in writers)]
    total = sum(batches.tokens(number) for number in needed)
    bar = tqdm(desc="collect", total=total, unit="tok", unit_scale=True, disable=not visible)
    pending: list[Future[None]] = []
    with bar, ThreadPoolExecutor(max_workers=1) as pool:
        for number in needed:
            for writer, rows in zip(writers, batches.run(number), strict=True):
                pending += writer.add(number, rows, pool)
            # At most one shard per layer waits to be written; an error in the writer surfaces here.
            while len(pending) > len(writers) or (pending and pending[0].done()):
                pending.pop(0).result()
            bar.update(batches.tokens(number))
        for future in pending:
            future.result()


class ShardWriter:
    """Writes this process's share of the shards that a layer's store lacks."""

    def __init__(
        self, path: Place, tap: Tap, starts: NDArray[np.int64], settings: CollectSettings, ranks: Ranks = ALONE
    ) -> None:
        """Open the begun store at ``path``; ``starts`` are the rows that each batch begins at, and the rows in all."""
        self.path, self.tap, self._starts, self._settings = path, tap, starts, settings
        self._root = store.opened(path)
        self._rows = int(starts[-1])
        x = self._root["mlp_in"]
        assert isinstance(x, zarr.Array)
        assert x.shards is not None
        self._borders = [*range(0, self._rows, x.shards[0]), self._rows]
        shards = range(len(self._borders) - 1)
        missing = ranks.decided(lambda: [number for number in shards if not self._mark(number).is_file()])
        here = missing[ranks.world.share(len(missing))]
        self._pieces: dict[int, list[dict[str, np.ndarray]]] = {number: [] for number in here}
        log.info("layer %d: %d of %d shards are missing", tap.layer, len(missing), len(shards))

    def shards_of(self, batch: int) -> list[int]:
        """Return this process's missing shards that hold rows of ``batch``."""
        start, stop = self._starts[batch : batch + 2]
        return [n for n in self._pieces if self._borders[n] < stop and start < self._borders[n + 1]]

    def add(self, batch: int, rows: Rows, pool: ThreadPoolExecutor) -> list["Future[None]"]:
        """Queue the rows of ``batch``; return the writes of the shards that became full."""
        start, stop = self._starts[batch : batch + 2]
        shards = self.shards_of(batch)
        arrays = rows.arrays(self._settings, f"layer {self.tap.layer}") if shards else {}
        writes = []
        for number in shards:
            part = slice(max(0, self._borders[number] - start), self._borders[number + 1] - start)
            self._pieces[number].append({name: values[part] for name, values in arrays.items()})
            if stop >= self._borders[number + 1]:
                writes.append(pool.submit(self.write, number, self._pieces.pop(number)))
        return writes

    def write(self, number: int, pieces: list[dict[str, np.ndarray]]) -> None:
        """Write shard ``number`` and, once it is whole, its mark."""
        start = self._borders[number]
        shard = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        with explain_errors(self.path):
            for name, values in shard.items():
                if name in self._root:
                    array = self._root[name]
                    assert isinstance(array, zarr.Array)
                    array[start : start + len(values)] = values
        sums: dict[str, Any] = {}
        for name in store.ACTIVATIONS:
            chunks = chunk_moments(name, shard)
            sums[f"{name}_total"] = np.stack([chunk.total.numpy() for chunk in chunks])
            sums[f"{name}_square"] = np.array([chunk.square for chunk in chunks])
        with replacing(self._mark(number)) as temporary, temporary.open("wb") as out:
            np.savez(out, **sums)

    def finish(self, attributes: dict[str, Any]) -> None:
        """Add up the shards' statistics and mark the store complete."""
        extra: dict[str, Any] = {"left_out": 0}
        if self._settings.max_norm is None:
            rows, of_arrays = self._rows, self._marked_moments()
        else:
            kept = within_limits(self._root, self._rows, self._settings.max_norm)
            rows, of_arrays = int(kept.inside.sum()), kept.moments
            extra = {"norm_limits": kept.limits, "left_out": self._rows - rows}
        for name, chunks in of_arrays.items():
            attributes |= statistics(name, chunks, rows)
        store.finish(self.path, self._rows, {**attributes, **extra})
        shutil.rmtree(_done(self.path))

    def _marked_moments(self) -> dict[str, list[Moments]]:
        chunks: dict[str, list[Moments]] = {name: [] for name in store.ACTIVATIONS}
        for number in range(len(self._borders) - 1):
            with np.load(self._mark(number)) as sums:
                for name in store.ACTIVATIONS:
                    pairs = zip(sums[f"{name}_total"], sums[f"{name}_square"], strict=True)
                    chunks[name] += [Moments(torch.from_numpy(total), float(square)) for total, square in pairs]
        return chunks

    def _mark(self, number: int) -> Path:
        return _done(self.path) / f"{number}.npz"


def check_disk(paths: Sequence[Place], settings: CollectSettings, d_model: int, rows: int) -> None:
    """Refuse a disk on which ``paths`` do not fit, if the codec gains nothing; nobody says so of a URL.

    Raises:
        UserError: it is too small.
    """
    if not paths or not isinstance(paths[0], Path):
        return
    folder = paths[0].parent
    needed = len(paths) * rows * store.bytes_per_token(d_model, settings.dtype, settings.outputs)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"collect.tokens: the stores need {needed / 1e9:.2f} GB, but the disk of {folder} has "
            f"{free / 1e9:.2f} GB left; free some, lower collect.tokens, set collect.outputs: recomputed or "
            "collect.dtype: int8, or set XDG_CACHE_HOME"
        )
