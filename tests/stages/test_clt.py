"""Stages clt, clt_evaluate and clt_compare, with the real model and small stores of two of its layers."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML
from test_params import changed
from tests_support import make_store

from stages import clt, clt_compare, clt_evaluate, train
from stages.common.paths import Run
from stages.common.spans import LayersRun
from transcoders.core.errors import UserError
from transcoders.dictionary.crosslayer import files
from transcoders.language.model import load_tokenizer
from transcoders.training.step import Stepper

RUNS = [LayersRun(variant, "4+12", 0) for variant in ("clt", "per_layer")]
DOCUMENTS = 20


@pytest.fixture(scope="module")
def checkout(gemma, tmp_path_factory):
    """A folder as the earlier stages leave it: the later layer's outputs hold what the earlier layer's inputs say."""
    root = tmp_path_factory.mktemp("clt")
    params = changed(
        collect__layers=[4, 12],
        runs__layers=[4],
        evaluate__bootstrap=20,
        train__d_hidden=64,
        train__k=8,
        train__epochs=3,
        train__batch_size=200,
        clt__variants=[run.variant for run in RUNS],
        clt__spans=["4+12"],
        clt__seeds=[0],
        clt__tokens=300,
        clt__loss_tokens=20,
        checkpoints__every=5,
    )
    YAML().dump(params, root / "params.yaml")
    tokens = load_tokenizer(gemma)("In 1969 two astronauts walked on the Moon for the first time.")["input_ids"]
    contexts = pd.DataFrame({"tokens": [np.array(tokens)] * DOCUMENTS, "document": range(DOCUMENTS)})
    parts = ["train"] * 14 + ["validation"] * 2 + ["test"] * 4
    (root / "data").mkdir()
    (root / "data/model").symlink_to(gemma)
    contexts.to_parquet(root / "data/contexts.parquet")
    pd.DataFrame({"document": range(DOCUMENTS), "split": parts}).to_parquet(root / "data/split.parquet")
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(4000, 640, generator=generator).relu() for _ in range(2)]
    y = [x[0].roll(1, 1), x[0].roll(2, 1) + 0.3 * x[1]]
    for layer, inputs, outputs in zip((4, 12), x, y, strict=True):
        path = root / f"data/activations/layer_{layer}.zarr"
        make_store(path, inputs, outputs, documents=np.arange(4000) * DOCUMENTS // 4000)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        for run in RUNS:
            clt.work(run)
            clt_evaluate.work(run)
        clt_compare.work()
        yield root


def test_every_run_leaves_a_model_and_its_history(checkout):
    for run, reach in zip(RUNS, (None, 0), strict=True):
        model = files.load(checkout / run.model)
        assert model.config.layers == (4, 12)
        assert model.config.reach == reach
        assert [tap["layer"] for tap in model.config.provenance["taps"]] == [0, 0]  # as make_store says
        assert len(pd.read_csv(checkout / run.model / "history.csv")) > 2


def test_latents_across_layers_explain_the_later_layer_better(checkout):
    table = pd.read_csv(checkout / "data/clt_compare/layers.csv").set_index(["name", "layer"])
    across, own = (table.loc[run.name] for run in RUNS)
    assert across.loc[12, "fvu"] < own.loc[12, "fvu"] - 0.02
    assert across.loc[4, "later_share"] > 0.2
    assert own["later_share"].tolist() == [0, 0]
    assert table.loc["mean", "fvu"].between(0.9, 1.1).all()


def test_the_table_has_runs_and_baselines(checkout):
    table = pd.read_csv(checkout / "data/clt_compare/runs.csv").set_index("name")
    assert [*table.index] == ["mean", "affine", "pca_rank_8", *(run.name for run in RUNS)]
    for run in RUNS:
        metrics = json.loads((checkout / run.evaluation / "metrics.json").read_text())
        row = table.loc[run.name]
        assert row["total_l0"] == pytest.approx(16, abs=1)
        assert row["fvu"] == pytest.approx(
            pd.read_csv(checkout / run.evaluation / "layers.csv")["fvu"].mean(), rel=1e-4
        )
        assert metrics["ce_with_errors"] == pytest.approx(metrics["ce_clean"], rel=1e-4)
        assert row["ce_replaced"] > row["ce_clean"]
    assert (checkout / "data/clt_compare/layers_4+12.png").stat().st_size > 5000


def test_a_budget_over_layers_is_judged_but_for_the_loss(checkout, monkeypatch):
    params = (checkout / "params.yaml").read_text()
    content = YAML().load(params)
    content["clt"]["variants"] = ["clt_token"]
    YAML().dump(content, checkout / "params.yaml")
    monkeypatch.setattr(clt_compare, "CLT_COMPARISON", checkout / "data/of_token")
    run = LayersRun("clt_token", "4+12", 0)
    try:
        clt.work(run)
        clt_evaluate.work(run)
        clt_compare.work()
    finally:
        (checkout / "params.yaml").write_text(params)
    row = pd.read_csv(checkout / "data/of_token/runs.csv").set_index("name").loc[run.name]
    assert row["total_l0"] == pytest.approx(16, abs=1)
    assert row[["ce_replaced", "loss_recovered", "kl"]].isna().all()


def test_an_interrupted_run_gives_the_same_bytes(checkout, monkeypatch):
    run = RUNS[0]
    weights = {file.name: file.read_bytes() for file in (checkout / run.model).iterdir() if file.is_file()}
    take, calls = Stepper.take, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return take(self, *arguments)

    monkeypatch.setattr(Stepper, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        clt.work(run)
    monkeypatch.setattr(Stepper, "take", take)
    clt.work(run)
    assert {name: (checkout / run.model / name).read_bytes() for name in weights} == weights


@pytest.mark.parametrize(
    ("mistake", "line"),
    [
        ({"clt__spans": ["4+5"]}, r"clt\.spans: '4\+5' has layers \[5\], which collect\.layers lacks"),
        ({"clt__spans": ["12+4"]}, r"clt\.spans: '12\+4' names no ascending layers"),
        ({"clt__spans": ["4,12"]}, r"clt\.spans"),
        ({"clt__variants": ["topk"]}, r"clt\.variants: 'topk': those with a reach go into clt\.variants"),
        ({"runs__variants": ["clt"]}, r"runs\.variants: 'clt': those with a reach go into clt\.variants"),
        ({"clt__variants": ["clr"]}, r"clt\.variants: 'clr' is not defined"),
    ],
)
def test_mistakes_are_told_before_anything_runs(mistake, line):
    from stages.preset import AllParams

    with pytest.raises(UserError, match=line):
        AllParams.parse(changed(**({"collect__layers": [4, 9, 12]} | mistake)), "params.yaml")


def test_a_stage_refuses_the_other_kind_of_variant(checkout):
    with pytest.raises(UserError, match=r"'clt' has a reach, so it spans layers; name it in clt\.variants"):
        train.work(Run("clt", 4, 0))
    with pytest.raises(UserError, match=r"'topk' has no reach; set variants\.topk\.reach"):
        clt.work(LayersRun("topk", "4+12", 0))


def test_memory_that_will_not_suffice_is_told_with_the_numbers(checkout):
    content = YAML().load(checkout / "params.yaml")
    before = (checkout / "params.yaml").read_text()
    content["train"]["d_hidden"] = 500_000_000
    YAML().dump(content, checkout / "params.yaml")
    try:
        with pytest.raises(UserError, match=r"need about \d+\.\d GB to train, and \d+\.\d GB of memory are free"):
            clt.work(RUNS[0])
    finally:
        (checkout / "params.yaml").write_text(before)
