"""Trains in a process of its own and looks at what it takes: ``growth_job.py STORE FOLDER STEPS``; prints JSON."""

import gc
import json
import sys
from pathlib import Path

import numpy as np
import psutil
import torch
from training_support import CPU, trainer

from transcoders.activations.store import Store
from transcoders.training.step import Stepper

TAKE = Stepper.take
LEAKS = {
    "none": lambda leaked, batch: None,
    "files": lambda leaked, batch: leaked.append(open("/dev/null")),  # noqa: SIM115
    "memory": lambda leaked, batch: leaked.append((batch.x.repeat(3, 1), batch.y.repeat(3, 1))),  # more than lies free
}


def tensor_bytes():
    """Count the bytes that tensors hold: what training keeps, whatever the allocator makes of it."""
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.layout == torch.strided:
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


def watch(store, folder, steps, leak, leaked):
    """Train with reader, validation and checkpoints.

    Return, after a warm-up, bytes a step (of tensors, of the process), and the spread of files and threads.
    """
    process, seen = psutil.Process(), []

    def look(history):
        gc.collect()
        step, rss = history.rows[-1]["step"], process.memory_info().rss
        seen.append((step, tensor_bytes(), rss, process.num_fds(), process.num_threads()))

    def leaking(self, phase, batch, number, dead):
        LEAKS[leak](leaked, batch)
        return TAKE(self, phase, batch, number, dead)

    Stepper.take = leaking
    trainer(store, folder / leak, device=CPU, epochs=steps // 30, log_every=15, validate_every=15).train(look)
    warm = np.array(seen[len(seen) // 3 :], dtype=np.float64)
    spread = np.ptp(warm, axis=0)
    held, resident = (np.polyfit(warm[:, 0], warm[:, column], 1)[0] for column in (1, 2))
    return {"held": held, "resident": resident, "files": spread[3], "threads": spread[4]}


if __name__ == "__main__":
    opened, folder, leaked = Store(Path(sys.argv[1])), Path(sys.argv[2]), []
    watch(opened, folder / "first", 300, "none", leaked)  # machine code and the caches of products come with first uses
    growth = {"none": watch(opened, folder, int(sys.argv[3]), "none", leaked)}
    print(json.dumps(growth | {leak: watch(opened, folder, 300, leak, leaked) for leak in ("files", "memory")}))
