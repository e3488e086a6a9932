"""One rank of the tests' training jobs: ``train_job.py STORE OUT JOBS``, under torchrun or alone."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from crosslayer_support import cross_layer_trainer
from safetensors.torch import save_file
from training_support import run, trainer

from transcoders.activations.store import Store
from transcoders.dictionary.transcoder import WEIGHTS
from transcoders.distributed.ranks import ALONE, grid, joined


def trainer_for(job, store, checkpoint, ranks=ALONE, **changes):
    """Return the trainer of ``job``, on the store or, across layers, on those beside it."""
    changes |= job.get("changes", {})
    if "reach" not in job["variant"]:
        return trainer(store, checkpoint, job["variant"], ranks, **changes)
    stores = [Store(path) for path in sorted((store.path.parent / "layers").iterdir())]
    return cross_layer_trainer(stores, checkpoint, job["variant"], ranks, **changes)


def train(store, folder, ranks, job):
    """``job``: variant, changes to the settings, and optionally the step at which the last rank kills itself."""
    t = trainer_for(job, store, folder / "checkpoint", ranks)
    if "kill_at" in job and ranks.world.rank == ranks.world.size - 1:
        take = t.stepper.take

        def failing(phase, batch, number, dead):
            if number == job["kill_at"]:
                os.kill(os.getpid(), signal.SIGKILL)
            return take(phase, batch, number, dead)

        t.stepper.take = failing
    result = run(t)
    if ranks.latents.size > 1:
        t.sharing.save_model(t.model, folder)
    if ranks.first:
        if ranks.latents.size == 1:
            save_file({n: v.contiguous() for n, v in t.model.state_dict().items()}, folder / WEIGHTS)
        (folder / "history.json").write_text(json.dumps(result.history))


def main():
    torch.set_num_threads(1)
    store, out = Store(Path(sys.argv[1])), Path(sys.argv[2])
    with joined(torch.device("cpu")) as everyone:
        grids = {}
        for name, job in json.loads(sys.argv[3]).items():
            latents = job.get("latents", 1)
            if latents not in grids:
                grids[latents] = grid(everyone.world, latents)
            folder = out / name
            folder.mkdir(parents=True, exist_ok=True)
            train(store, folder, grids[latents], job)


if __name__ == "__main__":
    main()
