"""Collecting on several processes: each computes and writes whole shards of every store, and gathers nothing."""

import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from transcoders.activations import store
from transcoders.collecting import capture
from transcoders.collecting.capture import Activations, Moments
from transcoders.collecting.contexts import PAD, Contexts, batches
from transcoders.collecting.settings import CollectSettings
from transcoders.core.errors import UserError
from transcoders.core.files import replacing
from transcoders.core.places import Place, explain_errors
from transcoders.distributed.ranks import Ranks
from transcoders.language import taps
from transcoders.language.taps import Tap

log = logging.getLogger(__name__)
DONE = "done"
"""Folder in the notes on an unfinished store: a file for every shard that is written, with its statistics."""


class Layout(NamedTuple):
    """Where each batch's tokens lie in a layer's store."""

    starts: NDArray[np.int64]
    """Row that each batch begins at; the last number is the rows in all."""
    limits: list[float] | None
    """The norms of x and y above which a token is left out."""


class Job(NamedTuple):
    """What all processes collect."""

    bridge: Any
    taps: list[Tap]
    contexts: Contexts
    settings: CollectSettings
    special: Tensor
    plan: list[NDArray[np.int64]]

    def run(self, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The hooked tensors and the labels of batch ``number``."""
        labels = capture.batch_labels(self.contexts, self.plan[number], self.special)
        device = next(self.bridge.original_model.parameters()).device
        return capture.forward(self.bridge, labels["token"].clamp_min(0).to(device), self.taps), labels


@torch.inference_mode()
def collect_shards(
    bridge: Any,
    layer_taps: list[Tap],
    contexts: Contexts,
    settings: CollectSettings,
    special_ids: list[int],
    paths: Sequence[Place],
    attributes: list[dict[str, Any]],
    ranks: Ranks,
) -> None:
    """What ``capture.collect`` does, by all ``ranks`` together; the stores have the same bytes.

    A batch runs whole wherever one of its rows is needed, so two ranks compute one that lies across
    their border. Shards that an earlier call finished are kept, whichever rank wrote them.

    Raises:
        UserError: a tap is not an MLP, a value does not fit the dtype, or the disk is too small.
    """
    special = torch.tensor(special_ids, dtype=torch.long)
    job = Job(bridge, layer_taps, contexts, settings, special, batches(contexts, settings.batch_size))
    d_model = int(bridge.cfg.d_model)
    if ranks.first:
        _create(job, paths, d_model)
    ranks.world.wait()
    layouts = _layouts(job, paths, ranks)
    writers = [ShardWriter(*one, settings, ranks) for one in zip(paths, layer_taps, layouts, strict=True)]
    _write(job, writers, shown=ranks.first)
    ranks.world.wait()
    if ranks.first:
        for writer, extra in zip(writers, attributes, strict=True):
            writer.finish({**extra, "d_model": d_model}, left_out=int(_stored(job).sum()) - writer.rows)


def _create(job: Job, paths: Sequence[Place], d_model: int) -> None:
    capacity = int((job.contexts.tokens != PAD).sum()) - len(job.contexts.tokens)
    missing = [path for path in paths if not (_done(path).is_dir() and store.is_begun(path))]
    capture.check_disk(missing, job.settings, d_model, capacity)
    for path in missing:
        shutil.rmtree(_done(path), ignore_errors=True)
        store.notes_folder(path).with_suffix(".json").unlink(missing_ok=True)  # of a single process that began it
        capture.create_store(path, job.settings, d_model, capacity)
        _done(path).mkdir(parents=True)


def _done(path: Place) -> Path:
    return store.notes_folder(path) / DONE


def _stored(job: Job) -> NDArray[np.int64]:
    """Tokens of each batch that are no BOS, padding or special token."""
    table = job.contexts.tokens
    per_context = ((table != PAD) & ~np.isin(table, job.special.numpy())).sum(1)
    return np.array([per_context[rows].sum() for rows in job.plan], dtype=np.int64)


def _layouts(job: Job, paths: Sequence[Place], ranks: Ranks) -> list[Layout]:
    """Of each layer. Which tokens are too long only the model says: with ``max_norm`` it runs once more for that."""
    team, max_norm = ranks.world, job.settings.max_norm
    if max_norm is None:
        return [Layout(_starts(_stored(job)), None)] * len(paths)
    files = [_done(path) / "layout.npz" for path in paths]
    known = ranks.decided(lambda: [dict(np.load(file)) for file in files if file.is_file()])
    if len(known) < len(files):
        caught, labels = job.run(0)
        limits = torch.tensor([capture.norm_limits(tap, caught, labels, max_norm) for tap in job.taps]).double()
        team.broadcast_(limits)
        counts = torch.zeros(len(job.taps), len(job.plan), dtype=torch.long)
        own = range(len(job.plan))[team.share(len(job.plan))]
        for number in tqdm(own, desc="tokens that are too long", unit="batch", disable=not ranks.first):
            caught, labels = job.run(number)
            for layer, tap in enumerate(job.taps):
                counts[layer, number] = len(capture.kept(tap, caught, labels, limits[layer].tolist()).x)
        team.sum_(counts)
        known = [{"counts": c.numpy(), "limits": e.numpy()} for c, e in zip(counts, limits, strict=True)]
    if ranks.first:
        for file, layout in zip(files, known, strict=True):
            with replacing(file) as temporary, temporary.open("wb") as out:
                np.savez(out, **layout)
    return [Layout(_starts(layout["counts"]), layout["limits"].tolist()) for layout in known]


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], counts.cumsum()])


def _write(job: Job, writers: list["ShardWriter"], *, shown: bool) -> None:
    needed = [number for number in range(len(job.plan)) if any(writer.shards_of(number) for writer in writers)]
    tokens = [capture.tokens_of(job.contexts, job.plan[number]) for number in needed]
    bar = tqdm(desc="collect", total=sum(tokens), unit="tok", unit_scale=True, disable=not shown)
    pending: list[Future[None]] = []
    with bar, ThreadPoolExecutor(max_workers=1) as pool:
        for number, count in zip(needed, tokens, strict=True):
            caught, labels = job.run(number)
            for writer in writers:
                rows = capture.kept(writer.tap, caught, labels, writer.layout.limits)
                if number == needed[0]:
                    error = taps.check_tap(job.bridge, writer.tap, rows.x, rows.y)
                    log.info("layer %d: the model's MLP maps x to y (relative error %.1e)", writer.tap.layer, error)
                pending += writer.add(number, rows, pool)
            while len(pending) > len(writers) or (pending and pending[0].done()):
                pending.pop(0).result()
            bar.update(count)
        for future in pending:
            future.result()


class ShardWriter:
    """Writes this rank's share of the shards that a layer's store lacks."""

    def __init__(self, path: Place, tap: Tap, layout: Layout, settings: CollectSettings, ranks: Ranks) -> None:
        self.path, self.tap, self.layout, self.settings = path, tap, layout, settings
        self._root = store.opened(path)
        self.rows = int(layout.starts[-1])
        x = self._root["mlp_in"]
        assert isinstance(x, zarr.Array)
        assert x.shards is not None
        self._borders = [*range(0, self.rows, x.shards[0]), self.rows]
        shards = range(len(self._borders) - 1)
        missing = ranks.decided(lambda: [number for number in shards if not self._mark(number).is_file()])
        own = missing[ranks.world.share(len(missing))]
        self._pieces: dict[int, list[dict[str, np.ndarray]]] = {number: [] for number in own}
        log.info("layer %d: %d of %d shards are missing", tap.layer, len(missing), len(shards))

    def shards_of(self, batch: int) -> list[int]:
        """This rank's missing shards that hold rows of ``batch``."""
        start, stop = self.layout.starts[batch : batch + 2]
        return [n for n in self._pieces if self._borders[n] < stop and start < self._borders[n + 1]]

    def add(self, batch: int, rows: Activations, pool: ThreadPoolExecutor) -> list["Future[None]"]:
        """Queue the rows of ``batch``; returns the writes of the shards that became full."""
        start, stop = self.layout.starts[batch : batch + 2]
        if len(rows.x) != stop - start:
            raise UserError(
                f"collect.max_norm: {len(rows.x)} tokens of batch {batch} are short enough now, {stop - start} were "
                "before; the processes' devices round differently: use devices of one kind, or max_norm: null"
            )
        shards = self.shards_of(batch)
        arrays = capture.stored_arrays(rows, self.settings, self.tap) if shards else {}
        writes = []
        for number in shards:
            part = slice(max(0, self._borders[number] - start), self._borders[number + 1] - start)
            self._pieces[number].append({name: values[part] for name, values in arrays.items()})
            if stop >= self._borders[number + 1]:
                writes.append(pool.submit(self._write, number, self._pieces.pop(number)))
        return writes

    def _write(self, number: int, pieces: list[dict[str, np.ndarray]]) -> None:
        start = self._borders[number]
        shard = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        with explain_errors(self.path):
            capture.write_rows(self._root, start, shard)
        sums: dict[str, Any] = {}
        for name in store.ACTIVATIONS:
            found = capture.chunk_moments(name, shard)
            sums[f"{name}_total"] = np.stack([chunk.total.numpy() for chunk in found])
            sums[f"{name}_square"] = np.array([chunk.square for chunk in found])
        with replacing(self._mark(number)) as temporary, temporary.open("wb") as out:
            np.savez(out, **sums)

    def finish(self, attributes: dict[str, Any], left_out: int) -> None:
        """Add up the shards' statistics and mark the store complete."""
        chunks: dict[str, list[Moments]] = {name: [] for name in store.ACTIVATIONS}
        for number in range(len(self._borders) - 1):
            with np.load(self._mark(number)) as found:
                for name in store.ACTIVATIONS:
                    pairs = zip(found[f"{name}_total"], found[f"{name}_square"], strict=True)
                    chunks[name] += [Moments(torch.from_numpy(total), float(square)) for total, square in pairs]
        for name, of_array in chunks.items():
            attributes |= capture.statistics(name, of_array, self.rows)
        store.finish(self.path, self.rows, {**attributes, "left_out": left_out})
        shutil.rmtree(_done(self.path))

    def _mark(self, number: int) -> Path:
        return _done(self.path) / f"{number}.npz"
