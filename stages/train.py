"""Stage `train`: one transcoder on the training documents of one layer."""

import os

from stages.common.entry import entry, run_arguments
from stages.common.inputs import open_inputs
from stages.common.jobs import job_of
from stages.common.paths import Run
from stages.common.training import TrainingParams, train_run
from transcoders.distributed.launch import launched

Params = TrainingParams


def work(run: Run) -> None:
    """Read activations and the split, train, and write models/<run>/."""
    params = Params.read(variant=run.variant)
    train_run(
        run,
        params,
        lambda device, ranks: job_of("train", params, run, open_inputs(run.layer, device), device, ranks),
    )


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    arguments = run_arguments(__doc__)
    entry(lambda: launched(Params.read(variant=arguments.variant).distributed, lambda: work(arguments)))
