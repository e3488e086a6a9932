"""What it saves to train several variants on the same batches."""

from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from benchmarks.measure import interleaved, ratio
from benchmarks.quality import Task, trainer_of
from transcoders.training.settings import TrainSettings, VariantSettings
from transcoders.training.together import train

SIZES = (1280, 5120)
NESTED = {"prefixes": (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)}
VARIANTS = [VariantSettings(), VariantSettings(**NESTED), VariantSettings(**NESTED, training="progressive")]


def run(task: Task, rounds: int, device: torch.device) -> list[str]:
    """Rows: latents, tokens/s of three variants (each token counted three times), one by one and together."""
    return [_row(task, d_hidden, rounds, device) for d_hidden in SIZES]


def _row(task: Task, d_hidden: int, rounds: int, device: torch.device) -> str:
    settings = TrainSettings(d_hidden=d_hidden, epochs=1, validate_every=10**6, checkpoint_every=10**6)
    one_by_one = [[variant] for variant in VARIANTS]
    seconds = interleaved(
        {"alone": partial(_train, task, settings, one_by_one), "together": partial(_train, task, settings, [VARIANTS])},
        rounds, device,
    )  # fmt: skip
    tokens = len(VARIANTS) * int(task.documents["train"][task.store.labels("document", 0, task.store.tokens)].sum())
    rates = [f"{tokens / median(seconds[name]):,.0f}" for name in ("alone", "together")]
    return f"| {d_hidden} | {rates[0]} | {rates[1]} | {ratio(seconds, 'alone', 'together'):.2f}x |"


def _train(task: Task, settings: TrainSettings, groups: list[list[VariantSettings]]) -> None:
    with TemporaryDirectory() as folder:
        for variants in groups:
            paths = [Path(folder) / f"{number}" for number in range(len(variants))]
            trainers = [trainer_of(task, settings, v, 0, path) for v, path in zip(variants, paths, strict=True)]
            train(trainers)
            for trainer in trainers:
                trainer.forget()
