"""Held-out error at equal tokens: that no speed is bought with quality."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.contenders import has_sparsify
from transcoders import kernels
from transcoders.activations.reader import Batch, ShuffledReader, ordered_batches
from transcoders.activations.recompute import open_store
from transcoders.activations.settings import SplitSettings
from transcoders.activations.split import PARTS, documents_of, split_documents
from transcoders.activations.store import Store
from transcoders.core.devices import matmul_precision
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.predictors import transcoder_predictor
from transcoders.evaluation.reconstruction import Prediction, Predictor, reconstruction
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.training.config import config_of
from transcoders.training.schedule import learning_rate
from transcoders.training.settings import TrainSettings, VariantSettings
from transcoders.training.start import Start, Statistics, measure, sample_of
from transcoders.training.trainer import Job, Trainer

log = logging.getLogger(__name__)
SEEDS = 3
D_HIDDEN, K = 5120, 32
SPARSIFY_RATE = 1e-3


class Task(NamedTuple):
    """Hold real activations, split by document."""

    store: Store
    documents: dict[str, NDArray[np.bool_]]
    statistics: Statistics
    sample: Batch
    device: torch.device


def open_task(data: Path, tokens: int, device: torch.device) -> Task | None:
    """Open the first layer that the pipeline collected into ``data``; return None if there is none."""
    stores = sorted((data / "activations").glob("layer_*.zarr"))
    if not stores:
        log.warning("%s holds no activations: run the pipeline first, or name its folder with --data", data)
        return None
    store = open_store(stores[-1], data / "model", device)
    store.tokens = min(tokens, store.tokens)
    split = split_documents(pd.read_parquet(data / "documents.parquet"), SplitSettings())
    documents = {part: documents_of(split, part) for part in PARTS}
    return task_of(store, documents, device)


def task_of(store: Store, documents: dict[str, NDArray[np.bool_]], device: torch.device) -> Task:
    """Return the task of ``store``, with the statistics of the training documents."""
    train = list(ordered_batches(store, documents["train"], 200_000, torch.device("cpu")))
    return Task(store, documents, measure(train), sample_of(train), device)


def run(task: Task, epochs: int, seeds: int = SEEDS) -> list[str]:
    """Return the rows of the table."""
    ways = {
        "ours": ("auto", VariantSettings()),
        "ours, reference kernels": ("reference", VariantSettings()),
        "ours, groupmax": ("auto", VariantSettings(encoder="groupmax")),
    }
    settings = TrainSettings(d_hidden=D_HIDDEN, k=K, epochs=epochs, precision="bf16")
    rows = []
    for name, (backend, variant) in ways.items():
        errors = []
        for seed in range(seeds):
            with kernels.using(backend):
                model = train(task, settings, variant, seed)
            errors.append(error(task, transcoder_predictor(model)))
        rows.append(_row(name, errors))
    if has_sparsify():
        rows.append(_row("sparsify", [error(task, _sparsify(task, epochs, seed)) for seed in range(seeds)]))
    return rows


def _reader(task: Task, batch_size: int, seed: int) -> ShuffledReader:
    return ShuffledReader(
        task.store,
        task.documents["train"],
        batch_size=batch_size,
        buffer_tokens=131_072,
        seed=seed,
        device=task.device,
    )


def train(task: Task, settings: TrainSettings, variant: VariantSettings, seed: int) -> Transcoder:
    """Train on the task and return the model."""
    with TemporaryDirectory() as folder:
        return trainer_of(task, settings, variant, seed, Path(folder) / "c").train().model.requires_grad_(False)


def trainer_of(task: Task, settings: TrainSettings, variant: VariantSettings, seed: int, checkpoint: Path) -> Trainer:
    """Make a run on the task, as the stage `train` makes it."""
    config = config_of(settings, variant, task.store.d_model, task.statistics, {})
    held_out = [Batch(b.x, b.y) for b in ordered_batches(task.store, task.documents["validation"], 2048, task.device)]
    reader = _reader(task, settings.batch_size, seed)
    start = Start(task.statistics, task.sample, seed)
    return Trainer(Job(config, settings, variant, reader, start, held_out, checkpoint, task.device, 10**6))


def _sparsify(task: Task, epochs: int, seed: int) -> Predictor:
    """Train eai-sparsify's SparseCoder with Adam and its initialisation, on the same batches and schedule."""
    if task.device.type == "cpu":
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(seed)
    coder = SparseCoder(
        task.store.d_model, SparseCoderConfig(num_latents=D_HIDDEN, k=K, transcode=True), device=task.device
    )
    optimiser = torch.optim.Adam(coder.parameters(), SPARSIFY_RATE, fused=True)
    batch_size = TrainSettings().batch_size
    reader = _reader(task, batch_size, seed)
    steps = epochs * reader.batches_per_epoch
    scales = task.statistics.x_scale, task.statistics.y_scale
    with matmul_precision(task.device, bf16=True):
        for step, batch in zip(range(steps), reader.batches(), strict=False):
            coder.set_decoder_norm_to_unit_norm()
            coder(batch.x / scales[0], batch.y / scales[1]).fvu.backward()
            coder.remove_gradient_parallel_to_decoder_directions()
            optimiser.param_groups[0]["lr"] = learning_rate(step, steps, SPARSIFY_RATE, 0.05, 0.2)
            optimiser.step()
            optimiser.zero_grad()

    def predict(x: Tensor, y: Tensor) -> Prediction:
        with torch.no_grad():
            out = coder(x / scales[0], y / scales[1])
        order = out.latent_indices.sort(1)
        latents = kernels.SparseLatents(
            torch.arange(0, len(x) * K + 1, K),
            order.values.flatten(),
            out.latent_acts.gather(1, order.indices).flatten(),
            D_HIDDEN,
        )
        return Prediction(out.sae_out * scales[1], latents)

    return predict


def error(task: Task, predict: Predictor) -> tuple[float, float]:
    """Return FVU and share of dead latents on the test documents."""

    def batches() -> Iterator[Any]:
        return ordered_batches(task.store, task.documents["test"], 10**9, task.device)

    result = reconstruction(
        predict,
        batches(),
        documents=len(task.documents["test"]),
        d_hidden=D_HIDDEN,
        output_scale=task.statistics.y_scale,
        settings=EvaluateSettings(bootstrap=2),
    )
    return result.metrics["fvu"], result.metrics["dead_fraction"]


def _row(name: str, results: list[tuple[float, float]]) -> str:
    errors, dead = zip(*results, strict=True)
    cells = [f"{value:.4f}" for value in (*errors, np.mean(errors))]
    return f"| {name} | " + " | ".join(cells) + f" | {100 * np.mean(dead):.1f} % |"
