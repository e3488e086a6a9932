"""What each kind of activation store takes of the disk, how fast it is written and read, and what it costs in FVU."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import quality
from transcoders.activations import store
from transcoders.activations.reader import ordered_batches
from transcoders.activations.recompute import open_store
from transcoders.activations.settings import SplitSettings
from transcoders.activations.split import PARTS, documents_of, split_documents
from transcoders.activations.store import Store
from transcoders.collecting.collect import DONE, ShardWriter, collect
from transcoders.collecting.contexts import make_contexts
from transcoders.collecting.rows import Batches, Rows
from transcoders.collecting.settings import CollectSettings, TextSettings
from transcoders.collecting.text import documents
from transcoders.core.files import cache_folder
from transcoders.core.provenance import model_hash
from transcoders.evaluation.predictors import transcoder_predictor
from transcoders.language.model import load_bridge, load_tokenizer
from transcoders.language.taps import Tap, resolve_tap
from transcoders.language.tokens import special_ids
from transcoders.training.settings import TrainSettings, VariantSettings

log = logging.getLogger(__name__)
LAYER = 9
COLLECTED, TOKENS, TRAINED = 20 * store.CHUNK_ROWS, store.SHARD_ROWS, 60_000
"""Tokens of the exact store, of the others, and of those from which training takes its documents'."""
ROUNDS = 4
KINDS: tuple[dict[str, Any], ...] = (
    {"dtype": "float32"},
    {"dtype": "float16"},
    {"dtype": "float16", "codec": "zstd"},
    {"dtype": "bfloat16"},
    {"dtype": "bfloat16", "codec": "zstd"},
    {"dtype": "bfloat16", "codec": "blosc-lz4"},
    {"dtype": "int8"},
    {"dtype": "int8", "codec": "zstd"},
    {"dtype": "float16", "outputs": "recomputed"},
    {"dtype": "int8", "codec": "zstd", "outputs": "recomputed"},
)


class Round(NamedTuple):
    """Hold the seconds of one round: of a store, and of a plain file of as many bytes."""

    write: float
    plain_write: float
    read: float
    plain_read: float


def run(model: Path, device: torch.device) -> list[str]:
    """Return the rows: the kind, its size, its rates beside those of plain files of the same bytes, held-out FVU.

    Every kind is trained on what it gives back, and judged on the test documents in float32.
    """
    kinds = [CollectSettings(layers=[LAYER], tokens=TOKENS, **kind) for kind in KINDS]
    rounds: list[list[Round]] = [[] for _ in kinds]
    errors: dict[tuple[str, str], float] = {}
    rows = []
    cache_folder("bench").mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache_folder("bench")) as name:
        folder = Path(name)
        parts, tap = _collect(model, folder / "exact.zarr", device)
        exact = Store(folder / "exact.zarr")
        batches = list(_batches(exact))
        judge = quality.task_of(exact, parts, device)
        for last in [False] * (ROUNDS - 1) + [True]:
            for settings, measured in zip(kinds, rounds, strict=True):
                path = folder / "kind.zarr"
                shutil.rmtree(path, ignore_errors=True)
                measured.append(_round(batches, tap, settings, path, model, device))
                if last:
                    values = settings.dtype, settings.outputs  # a codec changes none
                    errors[values] = errors.get(values) or _fvu(path, parts, judge, model)
                    rows.append(_row(settings, path, measured, errors[values]))
                    log.info(rows[-1])
    return rows


def _collect(model: Path, path: Path, device: torch.device) -> tuple[dict[str, Any], Tap]:
    """Write the float32 store that all others are made of."""
    bridge, tokenizer = load_bridge(model, device), load_tokenizer(model)
    settings = CollectSettings(layers=[LAYER], tokens=COLLECTED, dtype="float32")
    contexts = make_contexts(
        documents(TextSettings()),
        tokenizer,
        start=[tokenizer.bos_token_id],
        tokens=COLLECTED,
        context_length=settings.context_length,
        pool=8.0,
        seed=0,
    )
    tap = resolve_tap(bridge, LAYER, settings.hooks)
    batches = Batches(bridge, [tap], contexts, settings.batch_size, special_ids(tokenizer))
    collect(batches, settings, [path], [_facts(tap, model)])
    split = split_documents(contexts.documents, SplitSettings())
    return {part: documents_of(split, part) for part in PARTS}, tap


def _facts(tap: Tap, model: Path) -> dict[str, Any]:
    return {"mlp": tap.mlp, "mlp_scale": tap.mlp_scale, "model_hash": model_hash(model)}


def _batches(exact: Store) -> Iterator[Rows]:
    for start in range(0, TOKENS, store.CHUNK_ROWS):
        rows = start, start + store.CHUNK_ROWS
        labels = {name: torch.from_numpy(exact.labels(name, *rows)) for name in store.LABELS}
        yield Rows(exact.rows("mlp_in", *rows), exact.rows("mlp_out", *rows), labels)


def _round(
    batches: list[Rows], tap: Tap, settings: CollectSettings, path: Path, model: Path, device: torch.device
) -> Round:
    facts = _facts(tap, model)
    writing = _seconds(lambda: _write(batches, tap, settings, path, facts), path)
    opened = open_store(path, model, device)
    everything = np.ones(1 + int(opened.labels("document").max()), dtype=np.bool_)
    _forget(path)
    reading = _seconds(lambda: [None for _ in ordered_batches(opened, everything, TOKENS, device)])
    content = b"".join(file.read_bytes() for file in _files(path))
    plain = path.with_name("plain")
    plain_writing = _seconds(lambda: plain.write_bytes(content), plain)
    _forget(plain)
    return Round(writing, plain_writing, reading, _seconds(plain.read_bytes))


def _write(batches: list[Rows], tap: Tap, settings: CollectSettings, path: Path, facts: dict[str, Any]) -> None:
    """Write as `collect` does, from activations in memory."""
    d_model = batches[0].x.shape[1]
    starts = np.cumsum([0, *(len(batch.x) for batch in batches)])
    store.create(path, d_model, settings.dtype, int(starts[-1]), {}, codec=settings.codec, outputs=settings.outputs)
    (path / DONE).mkdir()
    writer = ShardWriter(path, tap, starts, settings)
    with ThreadPoolExecutor(max_workers=1) as pool:
        for number, batch in enumerate(batches):
            for written in writer.add(number, batch, pool):
                written.result()
    writer.finish({**facts, "d_model": d_model})


def _fvu(path: Path, parts: dict[str, Any], judge: quality.Task, model: Path) -> float:
    opened = open_store(path, model, judge.device)
    opened.tokens = TRAINED
    task = quality.task_of(opened, parts, judge.device)
    trained = quality.train(
        task, TrainSettings(d_hidden=quality.D_HIDDEN, k=quality.K, epochs=1), VariantSettings(), seed=0
    )
    return quality.error(judge, transcoder_predictor(trained))[0]


def _row(settings: CollectSettings, path: Path, rounds: list[Round], fvu: float) -> str:
    size = sum(file.stat().st_size for file in _files(path))
    usual = Store(path).d_model * 4 + 16  # float16 and the labels
    # The fastest of each: what other jobs took of the machine is least in it.
    write, plain_write, read, plain_read = (min(seconds) for seconds in zip(*rounds, strict=True))
    name = ", ".join(
        str(part) for part in (settings.dtype, settings.codec, settings.outputs) if part not in (None, "stored")
    )
    columns = [
        name,
        f"{size / TOKENS:.0f}",
        f"{size / TOKENS / usual:.0%}",
        f"{TOKENS / write:,.0f}",
        f"{size / write / 1e6:.0f}",
        f"{size / plain_write / 1e6:.0f}",
        f"{TOKENS / read:,.0f}",
        f"{size / read / 1e6:.0f}",
        f"{size / plain_read / 1e6:.0f}",
        f"{fvu:.4f}",
    ]
    return "| " + " | ".join(columns) + " |"


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def _seconds(work: Callable[[], Any], written: Path | None = None) -> float:
    """Return the seconds of ``work``, until what it wrote has reached the disk."""
    began = time.perf_counter()
    work()
    for file in _files(written) if written else ():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    return time.perf_counter() - began


def _forget(path: Path) -> None:
    """Drop the files from the page cache (Linux), so that they are read from the disk."""
    for file in _files(path):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
