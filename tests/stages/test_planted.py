"""Stages families, planted and verdicts, on a small store."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML
from tests_support import make_store

from stages import families, planted, train, verdicts
from stages.common.paths import Run, verdicts_of
from transcoders.planted.kinds import Kind
from transcoders.training.step import Stepper

ROOT = Path(__file__).parents[2]
PLANTED = [Run(variant, 2, 0) for variant in ("topk", "matryoshka")]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Activations without features of their own, and the plain run that says how large planted ones are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    x = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    make_store(Path("data/activations/layer_2.zarr"), x, 0.1 * x, documents=np.arange(4000) // 200)
    parts = ["train"] * 14 + ["validation"] * 2 + ["test"] * 4
    pd.DataFrame({"title": range(20), "split": parts}).to_parquet("data/split.parquet")
    params = YAML().load(ROOT / "params.yaml")
    params["train"] |= {"d_hidden": 64, "k": 8, "epochs": 30, "batch_size": 200, "precision": "float32"}
    params["families"] |= {
        "nested": 3,
        "controls": 1,
        "children": 2,
        "components": 4,
        "lowest_rate": 0.05,
        "highest_rate": 0.1,
        "size": 3.0,
    }
    params["planted"] |= {
        "layers": [2],
        "variants": [run.variant for run in PLANTED],
        "seeds": [0],
        "draws": 2,
        "bootstrap": 50,
    }
    params["checkpoints"]["every"] = 5
    YAML().dump(params, tmp_path / "params.yaml")
    train.work(PLANTED[0])
    families.work(2)


def test_planted_families_come_to_a_verdict_with_its_reason(checkout):
    for run in PLANTED:
        planted.work(run)
    table = pd.read_csv(PLANTED[1].planted / "families.csv")
    assert table["prefix"].nunique() == 5
    full = table[table["prefix"] == 64]
    assert full["kind"].tolist() == [Kind.NESTED] * 3 + [Kind.CHILDLESS, Kind.INDEPENDENT]
    assert (full["alone"] > 0).all()
    assert full["found"].any()
    verdicts.work(2)
    rows = pd.read_csv(verdicts_of(2) / "planted.csv")
    assert set(rows["variant"]) == {"matryoshka"}
    assert set(rows["against"]) == {"topk"}
    assert set(rows["verdict"]) == {"undecided"}  # three families decide nothing
    assert rows["reason"].str.len().min() > 0
    runs = pd.read_csv(verdicts_of(2) / "runs.csv").set_index("variant")
    found = full.loc[full["kind"] == Kind.NESTED, "found"]
    assert runs.loc["matryoshka", "found"] == pytest.approx(found.mean(), abs=1e-5)
    assert (verdicts_of(2) / "planted.png").stat().st_size > 10_000


def test_an_interrupted_run_ends_in_the_same_bytes(checkout, monkeypatch):
    def outcome() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in PLANTED[1].planted.iterdir()}

    planted.work(PLANTED[1])
    undisturbed, take, taken = outcome(), Stepper.take, []

    def interrupted(self, phase, batch, number, dead):
        if number == 12:
            raise KeyboardInterrupt
        taken.append(number)
        return take(self, phase, batch, number, dead)

    monkeypatch.setattr(Stepper, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        planted.work(PLANTED[1])
    monkeypatch.setattr(Stepper, "take", lambda self, *given: taken.append(given[2]) or take(self, *given))
    planted.work(PLANTED[1])
    assert taken.count(0) == 1  # it went on from the checkpoint
    assert outcome() == undisturbed
