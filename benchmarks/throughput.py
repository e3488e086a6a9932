"""Tokens per second of whole training runs, reading included, from a store that lies in the file system's cache."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.contenders import Size
from benchmarks.quality import Task, task_of, trainer_of
from transcoders.activations import store
from transcoders.activations.store import Store
from transcoders.core.files import cache_folder
from transcoders.training.settings import TrainSettings, VariantSettings

NESTED = {"prefixes": (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)}
VARIANTS = {
    "topk": VariantSettings(),
    "matryoshka": VariantSettings(**NESTED),
    "plt": VariantSettings(**NESTED, training="progressive"),
}
CPU_SIZES = [Size(640, 5120, 32, 512)]
CUDA_SIZES = [*CPU_SIZES, Size(640, 5120, 32, 4096), Size(2304, 16384, 64, 2048), Size(2304, 16384, 64, 8192)]
TOKENS = {"cpu": 4 * store.CHUNK_ROWS, "cuda": 2 * store.SHARD_ROWS}
DOCUMENTS = 100


def run(device: torch.device) -> list[str]:
    """Return the rows: size and batch, then tokens/s and the share of the time spent waiting for data, by variant."""
    sizes = CUDA_SIZES if device.type == "cuda" else CPU_SIZES
    cache_folder("bench").mkdir(parents=True, exist_ok=True)
    rows = []
    with TemporaryDirectory(dir=cache_folder("bench")) as name:
        tasks = {d: _task(Path(name) / f"{d}.zarr", d, device) for d in {size.d for size in sizes}}
        for size in sizes:
            cells = [_measured(tasks[size.d], size, variant) for variant in VARIANTS.values()]
            rows.append(f"| {size.d}, {size.d_hidden}, {size.k}, {size.batch} | " + " | ".join(cells) + " |")
    return rows


def _measured(task: Task, size: Size, variant: VariantSettings) -> str:
    """Return the cell of the second of two runs: the first compiles programs and brings the store into the cache."""
    settings = TrainSettings(d_hidden=size.d_hidden, k=size.k, batch_size=size.batch, epochs=2, validate_every=10**6)
    for _ in range(2):
        with TemporaryDirectory() as folder:
            result = trainer_of(task, settings, variant, 0, Path(folder) / "checkpoint").train()
    tokens = result.history[-1]["tokens"]
    return f"{tokens / result.seconds:,.0f}, {result.seconds_waited / result.seconds:.0%}"


def _task(path: Path, d: int, device: torch.device) -> Task:
    """Store random activations (speed does not depend on values) of ``DOCUMENTS`` documents, the last held out."""
    rows = TOKENS[device.type]
    store.create(path, d, "float16", rows, {})
    group = store.opened(path)
    generator = torch.Generator(device).manual_seed(0)
    means = {}
    for name in ("mlp_in", "mlp_out"):
        values = torch.randn(rows, d, generator=generator, device=device)
        group[name][:] = store.to_storage(name, values, "float16", "a benchmark")[name]
        means |= {f"{name}_mean": values.mean(0).tolist(), f"{name}_mean_square": float(values.square().sum(1).mean())}
    owner = np.arange(rows) * DOCUMENTS // rows
    for name, label in {"token": owner, "document": owner, "position": owner, "context": owner}.items():
        group[name][:] = label
    store.finish(path, rows, {"d_model": d, **means})
    held_out = np.arange(DOCUMENTS) == DOCUMENTS - 1
    return task_of(Store(path), {"train": ~held_out, "validation": held_out, "test": held_out}, device)
