"""Stage `clt`: one cross-layer transcoder on the training documents of the layers that it spans."""

import os

from stages.common.entry import entry, layers_run_arguments
from stages.common.inputs import open_inputs
from stages.common.jobs import layers_job_of
from stages.common.spans import LayersRun
from stages.common.training import TrainingParams, train_run
from transcoders.distributed.launch import launched

Params = TrainingParams


def work(run: LayersRun) -> None:
    """Read the activations of all layers and the split, train, and write models/<run>/."""
    params, layers = Params.read(variant=run.variant), run.layers
    train_run(
        run,
        params,
        lambda device, ranks: layers_job_of(
            "clt", params, run, [open_inputs(layer, device) for layer in layers], device, ranks
        ),
    )


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    arguments = layers_run_arguments(__doc__)
    entry(lambda: launched(Params.read(variant=arguments.variant).distributed, lambda: work(arguments)))
