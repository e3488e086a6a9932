"""One rank of the tests' collecting jobs: ``collect_job.py MODEL OUT JOBS``; ``run`` serves one process too."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from transcoders.activations import store
from transcoders.collecting.collect import ShardWriter, collect
from transcoders.collecting.contexts import PAD, Contexts
from transcoders.collecting.rows import Batches
from transcoders.collecting.settings import CollectSettings
from transcoders.core.places import place
from transcoders.distributed.ranks import ALONE, joined
from transcoders.language.model import load_bridge
from transcoders.language.taps import resolve_tap

SPECIAL = [0, 1, 7]
LAYERS = [0, 2]


def contexts():
    """120 contexts of uneven length, with some special tokens within."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 100, (120, 33)).astype(np.int32)
    tokens[:, 0] = 1
    tokens[np.arange(33)[None] >= rng.integers(10, 34, 120)[:, None]] = PAD
    return Contexts(tokens, np.arange(120, dtype=np.int32), pd.DataFrame())


def run(bridge, folder, ranks=ALONE, kill_after=None, url=None, **changes):
    """Collect, into ``url`` if there is one; ``kill_after`` so many shards of its own the last rank kills itself."""
    store.SHARD_ROWS, store.CHUNK_ROWS = 256, 64
    table = contexts()
    settings = CollectSettings(layers=LAYERS, tokens=1, batch_size=3, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    taps = [resolve_tap(bridge, layer, settings.hooks) for layer in LAYERS]
    batches = Batches(bridge, taps, table, settings.batch_size, SPECIAL)
    paths = [place(f"{url or folder}/{n}.zarr") for n in LAYERS]
    if kill_after is not None and ranks.world.rank == ranks.world.size - 1:
        write, done = ShardWriter.write, []

        def failing(self, *args):
            if len(done) == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, *args)
            done.append(1)

        ShardWriter.write = failing
    collect(batches, settings, paths, [{"n": n} for n in LAYERS], ranks)


def main():
    torch.set_num_threads(1)
    bridge = load_bridge(Path(sys.argv[1]), torch.device("cpu"))
    with joined(torch.device("cpu")) as ranks:
        for name, job in json.loads(sys.argv[3]).items():
            run(bridge, Path(sys.argv[2]) / name, ranks, **job)


if __name__ == "__main__":
    main()
