"""Stage `train`: one transcoder on the training documents of one layer."""

import os

from pydantic import Field

from stages.common.entry import entry, run_arguments
from stages.common.inputs import open_inputs
from stages.common.jobs import job_of
from stages.common.params import StageParams
from stages.common.paths import Run
from stages.common.training import train_run
from transcoders.distributed.launch import launched
from transcoders.distributed.settings import DistributedSettings
from transcoders.training.settings import CheckpointSettings, TrainSettings, VariantSettings


class Params(StageParams):
    """What decides this stage; the last two decide where and how it runs, and no result."""

    train: TrainSettings
    device: str
    variant: VariantSettings = Field(alias="variants.{variant}")
    distributed: DistributedSettings = DistributedSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()


def work(run: Run) -> None:
    """Read activations and the split, train, and write models/<run>/."""
    params = Params.read(variant=run.variant)
    train_run(
        run,
        params.device,
        params.distributed.latents,
        lambda device, ranks: job_of("train", params, run, open_inputs(run.layer, device), device, ranks),
    )


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    arguments = run_arguments(__doc__)
    entry(lambda: launched(Params.read(variant=arguments.variant).distributed, lambda: work(arguments)))
