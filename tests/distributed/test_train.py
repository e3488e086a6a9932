"""Two and three gloo processes against one: the same training, from every variant, through deaths and restarts."""

import json
import shutil
import signal

import pytest
import torch
from crosslayer_support import layered_stores
from safetensors.torch import load_file, save_file
from spread import spread
from tests_support import make_store
from train_job import trainer_for
from training_support import run, trainer, weights_of

from transcoders.activations.store import Store
from transcoders.core.errors import UserError
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.crosslayer import files
from transcoders.distributed.ranks import Ranks, Team
from transcoders.training.sliced.transcoder import SlicedTranscoder

NESTED = {"prefixes": [0.25, 0.5, 1], "prefix_k": [0.5, 0.75, 1]}
PROGRESSIVE = {**NESTED, "training": "progressive"}
CHANGES = {
    "epochs": 1,
    "batch_size": 600,
    "dead_after_tokens": 300,
    "aux_coefficient": 0.1,
    "checkpoint_every": 3,
    "precision": "float32",  # where AuxK runs in bfloat16, parts of a batch are rounded before they are added
}
MICRO = {**CHANGES, "micro_batch_size": 190}
JOBS = {
    "topk": {"variant": {}},
    "groupmax": {"variant": {"encoder": "groupmax"}},
    "batchtopk": {"variant": {"encoder": "batchtopk"}, "changes": MICRO},
    "jumprelu": {"variant": {**NESTED, "encoder": "jumprelu"}},
    "relu": {"variant": {"encoder": "relu"}},
    "skip": {"variant": {"skip": True, "orthogonality": "penalty"}},
    "nested": {"variant": NESTED, "changes": MICRO},
    "nested_batchtopk": {"variant": {**NESTED, "encoder": "batchtopk"}},
    "sampled": {"variant": {**NESTED, "sampled_prefixes": 3}},
    "stop_gradient": {"variant": {**NESTED, "stop_gradient": True}},
    "progressive": {"variant": {**PROGRESSIVE, "skip": True, "orthogonality": "penalty"}},
    "progressive_batchtopk": {"variant": {**PROGRESSIVE, "encoder": "batchtopk"}},
    "across": {"variant": {**NESTED, "reach": "all"}},
    "across_batchtopk": {"variant": {"encoder": "batchtopk", "reach": 1, "skip": True}},
    "unfrozen": {"variant": {**PROGRESSIVE, "previous_lr_scale": 0.3, "joint_finish": 0.3}},
}
ACROSS = ("across", "across_batchtopk")
SHARES = {  # (processes, of which share a dictionary): each variant runs in both ways, on two or three
    (2, 1): ("topk", "jumprelu", "nested_batchtopk", "progressive", "unfrozen", "groupmax", "across"),
    (2, 2): ("topk", "batchtopk", "nested", "skip", "groupmax", "stop_gradient", "sampled", "unfrozen", "across"),
    (3, 1): ("batchtopk", "relu", "skip", "nested", "sampled", "stop_gradient", "progressive_batchtopk"),
    (3, 3): (
        "topk",
        "relu",
        "jumprelu",
        "nested_batchtopk",
        "progressive",
        "progressive_batchtopk",
        "across",
        "across_batchtopk",
    ),
}
DYING = {"variant": {"encoder": "batchtopk"}, "changes": CHANGES}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """As ``planted``, which the other tests of training use."""
    torch.manual_seed(0)
    active = (torch.rand(6000, 24) < 0.1) * (1 + torch.rand(6000, 24))
    x = active @ torch.nn.functional.normalize(torch.randn(24, 16)) + 0.5
    y = 30 * (active @ torch.nn.functional.normalize(torch.randn(24, 16)) - 1.0)
    folder = tmp_path_factory.mktemp("store")
    (folder / "layers").mkdir()
    layered_stores(folder / "layers")
    return Store(make_store(folder / "s.zarr", x, y))


@pytest.fixture(scope="module")
def spread_runs(store, tmp_path_factory):
    """Every run on several ranks: at <processes>/<job>-<latents>, and those that were killed and went on."""
    out = tmp_path_factory.mktemp("runs")
    statuses, stderr = spread(
        2, "train_job.py", store.path, out / "killed", jobs={"sliced": {**DYING, "latents": 2, "kill_at": 7}}
    )
    assert statuses == [1, -signal.SIGKILL], stderr
    assert "PeerError: another process of the job is gone" in stderr[0]
    for processes, latents in ((2, 2), (3, 1)):
        folder = out / str(processes) / f"resumed-{latents}"
        folder.mkdir(parents=True)
        shutil.copy(out / "killed/sliced/checkpoint", folder)
        jobs = {
            f"{name}-{slices}": {"changes": CHANGES, **JOBS[name], "latents": slices}
            for (count, slices), names in SHARES.items()
            if count == processes
            for name in names
        }
        jobs |= {f"{kind}-{latents}": {**DYING, "latents": latents} for kind in ("whole", "resumed")}
        statuses, stderr = spread(processes, "train_job.py", store.path, out / str(processes), jobs=jobs)
        assert statuses == [0] * processes, stderr
    return out


def assert_as_alone(store, folder, tmp_path, job):
    t = trainer_for(job, store, tmp_path / "c", **({} if "changes" in job else CHANGES))
    history = run(t).history
    file = folder / "transcoder.safetensors"
    weights = load_file(file) if file.is_file() else files.load(folder).state_dict()
    for name, value in weights_of(t).items():
        assert torch.allclose(weights[name], value, rtol=1e-4, atol=1e-5), name
    theirs = json.loads((folder / "history.json").read_text())
    assert [row["step"] for row in theirs] == [row["step"] for row in history]
    for expected, row in zip(history, theirs, strict=True):
        for key, value in expected.items():
            assert row[key] == (None if value is None else pytest.approx(value, rel=1e-4)), key
    assert "encoder" in job["variant"] or any(row["aux_loss"] > 0 for row in history), "AuxK had nothing to do"


@pytest.mark.parametrize(
    ("processes", "latents", "name"), [(*split, name) for split, names in SHARES.items() for name in names]
)
def test_several_ranks_train_what_one_does(spread_runs, store, tmp_path, processes, latents, name):
    assert_as_alone(store, spread_runs / str(processes) / f"{name}-{latents}", tmp_path, JOBS[name])


def test_after_the_death_of_a_rank_a_rerun_continues_to_the_same_bytes(spread_runs):
    uninterrupted, resumed = (spread_runs / "2" / f"{kind}-2" for kind in ("whole", "resumed"))
    for name in ("transcoder.safetensors", "history.json"):
        assert (uninterrupted / name).read_bytes() == (resumed / name).read_bytes()
    assert not (resumed / "checkpoint").exists()


def test_a_rerun_may_have_other_ranks(spread_runs, store, tmp_path):
    """Killed on two ranks with half the latents each, and continued by three with all, or by one."""
    assert_as_alone(store, spread_runs / "3" / "resumed-1", tmp_path, DYING)
    alone = trainer(store, spread_runs / "killed/sliced/checkpoint", DYING["variant"], **CHANGES)
    assert alone._resume()
    assert alone.state.step == 6


def test_the_assembled_file_is_the_one_that_safetensors_writes(spread_runs, tmp_path):
    file = spread_runs / "3" / "progressive-3" / "transcoder.safetensors"
    save_file(load_file(file), tmp_path / "again")
    assert file.read_bytes() == (tmp_path / "again").read_bytes()


def test_what_cannot_be_sliced_is_told(store, tmp_path):
    team = Team(0, 2, None, (0, 1))
    with pytest.raises(UserError, match=r"distributed\.latents: 2 slices of latents 0 to 8 are too small for their k"):
        SlicedTranscoder(TranscoderConfig(d_in=4, d_out=4, d_hidden=8, k=5), team)
    with pytest.raises(UserError, match="do not go with orthogonality: projection"):
        trainer(store, tmp_path / "c", {**PROGRESSIVE, "orthogonality": "projection"}, Ranks(team, Team(), team))
    with pytest.raises(UserError, match=r"train\.batch_size: 1 is less than the 2 processes"):
        trainer(store, tmp_path / "c", {}, Ranks(team, team, Team()), batch_size=1)
