"""A stage with distributed.processes above 1 runs itself under torchrun's agent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file
from tests_support import make_store

from stages.preset import AllParams
from transcoders import Transcoder
from transcoders.core.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path):
    """A folder with params.yaml, a store and a split, as `train` finds them."""
    torch.manual_seed(0)
    active = (torch.rand(6000, 24) < 0.1) * (1 + torch.rand(6000, 24))
    x = active @ torch.nn.functional.normalize(torch.randn(24, 16)) + 0.5
    y = 30 * (active @ torch.nn.functional.normalize(torch.randn(24, 16)) - 1.0)
    documents = torch.arange(6000).div(600, rounding_mode="floor").int().numpy()
    make_store(tmp_path / "data/activations/layer_9.zarr", x, y, documents=documents)
    parts = ["train"] * 8 + ["validation", "test"]
    pd.DataFrame({"title": list("abcdefghij"), "tokens": 600, "split": parts}).to_parquet(
        tmp_path / "data/split.parquet"
    )
    params = YAML(typ="safe").load(ROOT / "params.yaml")
    params["train"] |= {"d_hidden": 64, "k": 4, "batch_size": 400, "epochs": 1, "learning_rate": 3e-3}
    params["train"] |= {"log_every": 4, "validate_every": 8}
    params["checkpoints"] = {"every": 4}
    params["device"] = "cpu"
    (tmp_path / "params.yaml").touch()
    return Project(tmp_path, params)


class Project:
    def __init__(self, root, params):
        self.root, self.params = root, params
        self.env = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(root / "cache"), "OMP_NUM_THREADS": "1"}

    def start(self, train=None, log=subprocess.PIPE, **distributed):
        params = self.params | {"train": self.params["train"] | (train or {}), "distributed": distributed}
        YAML().dump(params, self.root / "params.yaml")
        command = [sys.executable, "-m", "stages.train", "topk", "9", "0"]
        return subprocess.Popen(command, cwd=self.root, env=self.env, stderr=log, text=True)

    @property
    def log(self):
        return self.root / "log"

    @property
    def model(self):
        return self.root / "models/topk-9-0"


def kill_a_rank_of(agent):
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)


def wait_for(condition):
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_stage_runs_on_several_processes_and_survives_the_death_of_one(project):
    with project.log.open("w") as log:
        agent = project.start({"epochs": 400}, log, processes=2, restarts=1)
        wait_for(lambda: list((project.root / "cache/mtxplt/checkpoints").glob("[!.]*.safetensors")))
        kill_a_rank_of(agent)
        wait_for(lambda: "continuing at step" in project.log.read_text())
        kill_a_rank_of(agent)
        assert agent.wait(60) == 1
    errors = project.log.read_text()
    last = errors.splitlines()[-1]
    assert last.startswith("error: process 1 of the job ended: Signal 9 (SIGKILL)"), errors
    assert last.endswith("rerun to continue")
    assert "Traceback" not in errors
    assert not project.model.exists()

    # Nothing of it is in the way of other runs: two processes with half of the latents each end as one does.
    for name, distributed in (("alone", {"processes": 1}), ("sliced", {"processes": 2, "latents": 2})):
        _, errors = (agent := project.start(**distributed)).communicate(timeout=100)
        assert agent.returncode == 0, errors
        assert errors.count("train:   0%") == 1, "only one process draws a bar"
        project.model.rename(project.root / name)
    alone, sliced = (load_file(project.root / name / "transcoder.safetensors") for name in ("alone", "sliced"))
    for key, value in alone.items():
        assert torch.allclose(sliced[key], value, rtol=1e-4, atol=1e-5), key
    assert Transcoder.load(project.root / "sliced").config == Transcoder.load(project.root / "alone").config
    metrics = json.loads((project.root / "sliced/metrics.json").read_text())
    assert metrics["steps"] == 12


def test_a_mistake_that_every_rank_meets_is_one_line(project):
    _, errors = (agent := project.start({"batch_size": 100_000}, processes=2)).communicate(timeout=60)
    assert agent.returncode == 1
    assert [line for line in errors.splitlines() if "error" in line] == [
        "error: train.batch_size: 100000 is more than the 4800 tokens of the training documents; "
        "lower it or raise collect.tokens"
    ]


@pytest.mark.parametrize(
    ("distributed", "message"),
    [
        ({"processes": 3, "latents": 2}, "2 does not divide the 3 processes"),
        ({"hosts": 2}, r"distributed\.rendezvous: 2 hosts need a place to meet"),
        ({"rendezvous": "node0"}, r"distributed\.rendezvous: 'node0' is wrong"),
    ],
)
def test_impossible_jobs_are_refused(distributed, message):
    params = YAML(typ="safe").load(ROOT / "params.yaml") | {"distributed": distributed}
    with pytest.raises(UserError, match=message):
        AllParams.parse(params, "params.yaml")
