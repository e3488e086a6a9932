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
from transcoders.dictionary.transcoder import Transcoder, TranscoderConfig
from transcoders.evaluation.predictors import transcoder_predictor
from transcoders.evaluation.reconstruction import Prediction, Predictor, reconstruction
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.training import together
from transcoders.training.loop import Start, Trainer
from transcoders.training.schedule import learning_rate
from transcoders.training.settings import TrainSettings, VariantSettings
from transcoders.training.start import Statistics, measure, sample_of

log = logging.getLogger(__name__)
SEEDS = 3
D_HIDDEN, K = 5120, 32
SPARSIFY_RATE = 1e-3
BUCKETS_PER_K = 8


class Task(NamedTuple):
    """Real activations, split by document."""

    store: Store
    documents: dict[str, NDArray[np.bool_]]
    statistics: Statistics
    sample: Batch
    device: torch.device


def open_task(data: Path, tokens: int, device: torch.device) -> Task | None:
    """The first layer that the pipeline collected into ``data``; None if there is none."""
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
    """With the statistics of the training documents."""
    train = list(ordered_batches(store, documents["train"], 200_000, torch.device("cpu")))
    return Task(store, documents, measure(train), sample_of(train), device)


def run(task: Task, epochs: int, seeds: int = SEEDS) -> tuple[list[str], str]:
    """Rows of the table, and what the approximate selections find of a trained dictionary's top k."""
    ways: dict[str, tuple[dict[str, Any], VariantSettings]] = {
        "ours": ({}, VariantSettings()),
        "ours, reference kernels": ({"backend": "reference"}, VariantSettings()),
        "ours, bucketed selection": ({"selection": "bucketed"}, VariantSettings()),
        "ours, groupmax": ({}, VariantSettings(encoder="groupmax")),
    }
    rows, recalls = [], ""
    for name, (changes, variant) in ways.items():
        found = []
        for seed in range(seeds):
            settings = TrainSettings(d_hidden=D_HIDDEN, k=K, epochs=epochs, precision="bf16", **changes)
            model = train(task, settings, variant, seed)
            found.append(error(task, transcoder_predictor(model)))
        if name == "ours":
            recalls = _recall(model, task)
        rows.append(_row(name, found))
    if has_sparsify():
        rows.append(_row("sparsify", [error(task, _sparsify(task, epochs, seed)) for seed in range(seeds)]))
    return rows, recalls


def _reader(task: Task, batch_size: int, seed: int) -> ShuffledReader:
    return ShuffledReader(
        task.store, task.documents["train"], batch_size=batch_size, buffer_tokens=131_072, seed=seed,
        device=task.device,
    )  # fmt: skip


def train(task: Task, settings: TrainSettings, variant: VariantSettings, seed: int) -> Transcoder:
    with TemporaryDirectory() as folder:
        trainer = trainer_of(task, settings, variant, seed, Path(folder) / "c")
        together.train([trainer])
    return trainer.model.requires_grad_(False)


def trainer_of(task: Task, settings: TrainSettings, variant: VariantSettings, seed: int, checkpoint: Path) -> Trainer:
    """A run on the task, as the stage `train` makes it."""
    d, statistics = task.store.d_model, task.statistics
    assert isinstance(settings.d_hidden, int)
    model = Transcoder(TranscoderConfig(
        encoder=variant.encoder, d_in=d, d_out=d, d_hidden=settings.d_hidden, k=settings.k,
        prefixes=variant.sizes(settings.d_hidden), prefix_k=variant.ks(settings.k),
        input_scale=statistics.x_scale, output_scale=statistics.y_scale,
    )).to(task.device)  # fmt: skip
    held_out = [Batch(b.x, b.y) for b in ordered_batches(task.store, task.documents["validation"], 2048, task.device)]
    reader = _reader(task, settings.batch_size, seed)
    return Trainer(model, reader, settings, variant, Start(statistics, task.sample, seed), held_out, checkpoint)


def _sparsify(task: Task, epochs: int, seed: int) -> Predictor:
    """eai-sparsify's SparseCoder with Adam and its initialisation, on the same batches and schedule."""
    if task.device.type == "cpu":
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(seed)
    coder = SparseCoder(
        task.store.d_model, SparseCoderConfig(num_latents=D_HIDDEN, k=K, transcode=True), device=task.device
    )  # fmt: skip
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
            torch.arange(0, len(x) * K + 1, K), order.values.flatten(),
            out.latent_acts.gather(1, order.indices).flatten(), D_HIDDEN,
        )  # fmt: skip
        return Prediction(out.sae_out * scales[1], latents)

    return predict


def error(task: Task, predict: Predictor) -> tuple[float, float]:
    """FVU and share of dead latents on the test documents."""

    def batches() -> Iterator[Any]:
        return ordered_batches(task.store, task.documents["test"], 10**9, task.device)

    found = reconstruction(
        predict, batches(), documents=len(task.documents["test"]), d_hidden=D_HIDDEN,
        output_scale=task.statistics.y_scale, settings=EvaluateSettings(bootstrap=2),
    )  # fmt: skip
    return found.metrics["fvu"], found.metrics["dead_fraction"]


def _recall(model: Transcoder, task: Task) -> str:
    x = task.sample.x[:2048] / model.config.input_scale
    args = (x, model.W_enc.cpu(), model.b_enc.cpu(), K)
    exact = kernels.topk_encode(*args)
    shares = []
    for found in (kernels.bucketed_encode(*args, BUCKETS_PER_K * K), kernels.groupmax_encode(*args)):
        keys = [z.rows() * D_HIDDEN + z.indices for z in (exact, found)]
        shares.append(f"{float(torch.isin(*keys).float().mean()):.3f}")
    return f"| trained; {model.config.d_in}, {D_HIDDEN}, {K} | " + " | ".join(shares) + " |"


def _row(name: str, found: list[tuple[float, float]]) -> str:
    errors, dead = zip(*found, strict=True)
    cells = [f"{value:.4f}" for value in (*errors, np.mean(errors))]
    return f"| {name} | " + " | ".join(cells) + f" | {100 * np.mean(dead):.1f} % |"
