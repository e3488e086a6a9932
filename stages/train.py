"""Stage `train`: one transcoder on the training documents of one layer."""

import os
from contextlib import nullcontext

import pandas as pd
import torch
from pydantic import Field

from stages.common.entry import entry, run_arguments
from stages.common.inputs import open_inputs
from stages.common.jobs import job_of
from stages.common.params import StageParams
from stages.common.paths import LIVE, Run
from transcoders.core.files import alone, replacing, write_json
from transcoders.core.tables import write_csv
from transcoders.distributed.launch import launched
from transcoders.distributed.ranks import Ranks, joined, local_device
from transcoders.distributed.settings import DistributedSettings
from transcoders.training.history import metrics_of
from transcoders.training.settings import CheckpointSettings, TrainSettings, VariantSettings
from transcoders.training.trainer import Result, Trainer


class Params(StageParams):
    """What decides this stage; the last two decide where and how it runs, and no result."""

    train: TrainSettings
    device: str
    variant: VariantSettings = Field(alias="variants.{variant}")
    distributed: DistributedSettings = DistributedSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()


def write(run: Run, result: Result, ranks: Ranks) -> None:
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


def work(run: Run) -> None:
    """Read activations and the split, train, and write models/<run>/."""
    params = Params.read(variant=run.variant)
    device = local_device(params.device)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it writes buffers twice
    with (
        joined(device, params.distributed.latents) as ranks,
        alone(run.model, "training it") if ranks.first else nullcontext(),
    ):
        trainer = Trainer(job_of("train", params, run, open_inputs(run.layer, device), device, ranks))
        live = LIVE / f"{run.name}.csv"
        result = trainer.train(lambda history: write_csv(pd.DataFrame(history.rows), live))
        if ranks.first or result.sharing.processes > 1:
            write(run, result, ranks)
        trainer.forget()


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    arguments = run_arguments(__doc__)
    entry(lambda: launched(Params.read(variant=arguments.variant).distributed, lambda: work(arguments)))
