"""What a stage that trains does around its job: processes, one writer, the files of a run, and its live curve."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import pandas as pd
import torch
from pydantic import Field

from stages.common.params import StageParams
from stages.common.paths import LIVE
from transcoders.core.files import alone, replacing, write_json
from transcoders.core.tables import write_csv
from transcoders.distributed.ranks import Ranks, joined, local_device
from transcoders.distributed.settings import DistributedSettings
from transcoders.training.history import metrics_of
from transcoders.training.settings import CheckpointSettings, TrainSettings, VariantSettings
from transcoders.training.trainer import Job, Result, Trainer


class TrainingParams(StageParams):
    """What decides a run; the last two decide where and how it trains, and no result."""

    train: TrainSettings
    device: str
    variant: VariantSettings = Field(alias="variants.{variant}")
    distributed: DistributedSettings = DistributedSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()


class Trained(Protocol):
    """Describe a run: what it is called, and where its model goes."""

    @property
    def name(self) -> str:
        """Return the key of the run's stages."""

    @property
    def model(self) -> Path:
        """Return the folder of the trained model."""


def train_run(run: Trained, params: TrainingParams, job_of: Callable[[torch.device, Ranks], Job]) -> None:
    """Train the job that ``job_of`` puts together for this process, and write the run's folder."""
    device = local_device(params.device)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it writes buffers twice
    with (
        joined(device, params.distributed.latents) as ranks,
        alone(run.model, "training it") if ranks.first else nullcontext(),
    ):
        trainer = Trainer(job_of(device, ranks))
        live = LIVE / f"{run.name}.csv"
        result = trainer.train(lambda history: write_csv(pd.DataFrame(history.rows), live))
        if ranks.first or result.sharing.processes > 1:
            _write(run, result, ranks)
        trainer.forget()


def _write(run: Trained, result: Result, ranks: Ranks) -> None:
    """Write the last and the best weights, the history and metrics; what it cost is for people, and no output."""
    with replacing(run.model) if ranks.first else nullcontext(run.model) as folder:
        result.sharing.save_model(result.model, folder / "final")
        result.model.load_state_dict(result.best_weights)
        result.sharing.save_model(result.model, folder)
        if ranks.first:
            write_csv(pd.DataFrame(result.history), folder / "history.csv")
            write_json(folder / "metrics.json", metrics_of(result.history, result.best_step, result.best_nmse))
    if ranks.first:
        write_json(LIVE / f"{run.name}.json", result.cost())
