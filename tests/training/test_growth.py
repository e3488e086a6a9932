"""Hours of training take no more memory, files or threads than minutes of it."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
from training_support import trainer

from transcoders.activations.store import Store
from transcoders.training.loop import Trainer

SHORT, LONG = 900, 20_000
MOST = {SHORT: 8000, LONG: 1000}
"""Bytes that a step may add after the warm-up: 100 MB in 4 hours of the delivered run (100 000 steps). In a short run
the allocator's own moods are larger, yet less than half of a batch."""


class Grown(NamedTuple):
    """What a run took after its warm-up."""

    bytes_per_step: float
    files: set[int]
    threads: set[int]


def watch(store: Store, folder: Path, steps: int) -> Grown:
    """Train ``steps`` with reader, validation and checkpoints, looking at the process at every validation."""
    process = psutil.Process()
    seen: list[tuple[int, int, int, int]] = []

    def look(history: list[dict[str, float]]) -> None:
        gc.collect()
        seen.append((int(history[-1]["step"]), process.memory_info().rss, process.num_fds(), process.num_threads()))

    made = trainer(store, folder / "c", epochs=steps // 30, log_every=50, validate_every=50)
    made.run(look)
    warm = np.array(seen[len(seen) // 3 :], dtype=np.int64)
    steps_of, rss = warm[:, 0], warm[:, 1]
    return Grown(float(np.polyfit(steps_of, rss, 1)[0]), set(warm[:, 2].tolist()), set(warm[:, 3].tolist()))


def flat(grown: Grown, steps: int) -> bool:
    return (
        grown.bytes_per_step < MOST[steps]
        and max(grown.files) - min(grown.files) <= 1  # a checkpoint or a shard, open just then
        and max(grown.threads) - min(grown.threads) <= 1
    )


@pytest.mark.parametrize("steps", [SHORT, pytest.param(LONG, marks=pytest.mark.slow)])
def test_training_does_not_grow(planted: Store, tmp_path: Path, steps: int) -> None:
    grown = watch(planted, tmp_path, steps)
    print(grown)
    assert flat(grown, steps), grown


LEAKS: dict[str, Callable[[list[object], object], None]] = {
    "memory": lambda kept, batch: kept.append((batch.x.clone(), batch.y.clone())),
    "files": lambda kept, batch: kept.append(open("/dev/null")),  # noqa: SIM115
}


@pytest.mark.parametrize("kind", LEAKS)
def test_a_leak_would_be_seen(planted: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    kept: list[object] = []
    step = Trainer._step

    def leaking(self: Trainer, batch: object) -> float:
        LEAKS[kind](kept, batch)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "_step", leaking)
    assert not flat(watch(planted, tmp_path, SHORT), SHORT)
    for one in kept:
        if hasattr(one, "close"):
            one.close()
