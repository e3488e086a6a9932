"""Hours of training take no more memory, files or threads than minutes of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from transcoders.activations.store import Store

HERE = Path(__file__).parent
MOST_HELD = 1000
"""Bytes of tensors that a step may add after the warm-up; a batch has 25 600."""
MOST_RESIDENT = 1000
"""The same of the process, in a run so long that the allocator's moods and other work on the machine even out."""


@pytest.mark.parametrize("steps", [450, pytest.param(20_000, marks=pytest.mark.slow)])
def test_training_does_not_grow_and_a_leak_would_be_seen(planted: Store, tmp_path: Path, steps: int) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "growth_job.py"), str(planted.path), str(tmp_path), str(steps)],
        env=os.environ | {"PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE.parent}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    growth = json.loads(done.stdout)
    assert abs(growth["none"]["held"]) < MOST_HELD, growth
    assert steps < 20_000 or growth["none"]["resident"] < MOST_RESIDENT, growth
    assert growth["none"]["files"] <= 1, "a checkpoint or a shard may be open just then"
    assert growth["none"]["threads"] <= 2, "the reader's may be at a load just then"
    assert growth["memory"]["held"] > 25 * MOST_HELD, growth
    assert growth["files"]["files"] > 50
