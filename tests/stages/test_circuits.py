"""The circuits stage on the real model, with small random transcoders at two layers."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from circuits_support import random_transcoders
from ruamel.yaml import YAML
from test_params import ROOT, changed
from tests_support import make_store

from stages import circuits
from stages.params import parse
from transcoders.circuits.prompts import read_prompts
from transcoders.core.errors import UserError
from transcoders.language.model import load_tokenizer

PROMPTS = [
    {"name": "eiffel", "task": "recall", "text": "The Eiffel Tower is in", "answer": " Paris", "foil": " London"},
    {"name": "colours", "task": "induction", "text": "red blue green red blue", "answer": " green", "foil": " red"},
]
VARIANTS = ["topk", "plt"]


@pytest.fixture(scope="module")
def checkout(gemma, tmp_path_factory):
    """A folder as the earlier stages leave it, and the stage run in it."""
    root = tmp_path_factory.mktemp("circuits")
    params = changed(
        circuits__seeds=[0], circuits__loss_tokens=40, circuits__max_latents=60, collect__layers=[4, 12],
        runs__layers=[4, 12], runs__variants=VARIANTS, evaluate__bootstrap=20,
    )  # fmt: skip
    YAML().dump(params, root / "params.yaml")
    (root / "prompts").mkdir()
    YAML().dump(PROMPTS, root / "prompts/circuits.yaml")
    (root / "data").mkdir()
    (root / "data/model").symlink_to(gemma)
    tokens = load_tokenizer(gemma)("In 1969 two astronauts walked on the Moon for the first time in history.")[
        "input_ids"
    ]
    pd.DataFrame({"tokens": [np.array(tokens)] * 2, "document": [0, 1]}).to_parquet(root / "data/contexts.parquet")
    pd.DataFrame({"document": [0, 1], "split": ["train", "test"]}).to_parquet(root / "data/split.parquet")
    for layer in (4, 12):
        make_store(root / f"data/activations/layer_{layer}.zarr", torch.randn(6, 640), torch.randn(6, 640))
        for seed, variant in enumerate(VARIANTS):
            model = random_transcoders([layer], d_model=640, d_hidden=64, k=4, seed=seed)[layer]
            model.save(root / f"models/{variant}-{layer}-0")
    described = pd.DataFrame({"latent": range(64), "description": "some words", "score": 0.75})
    (root / "data/features").mkdir()
    described.to_parquet(root / "data/features/topk-4-0.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        circuits.run(0)
    return root


def test_every_variant_is_judged_and_compared(checkout):
    metrics = json.loads((checkout / "metrics/circuits/0.json").read_text())
    assert set(VARIANTS) <= set(metrics)
    for variant in VARIANTS:
        found = metrics[variant]
        assert found["layers"] == 2
        assert found["ce_with_errors"] == pytest.approx(found["ce_clean"], rel=1e-4)
        assert found["ce_replaced"] > found["ce_clean"]
        assert found["completeness_error"] < 1e-3
        assert found["largest_sum_error"] < 1e-3
        assert found["prompts"] == 2
        assert 0 < found["completeness"] <= 1
        assert found["active_latents"] >= found["graph_latents"]
    assert set(metrics) - set(VARIANTS) <= {"plt_over_topk"}


def test_there_is_a_graph_and_a_page_for_every_prompt(checkout):
    out = checkout / "data/circuits/0"
    slugs = [graph["slug"] for graph in json.loads((out / "graphs/graph-metadata.json").read_text())["graphs"]]
    assert slugs == [f"{variant}-{prompt['name']}" for variant in VARIANTS for prompt in PROMPTS]
    index = (out / "index.html").read_text()
    for slug in slugs:
        graph = json.loads((out / f"graphs/{slug}.json").read_text())
        assert graph["nodes"]
        assert graph["links"]
        assert f"href='{slug}.html'" in index
        assert not re.search(r"https?:", (out / f"{slug}.html").read_text())
    assert (out / "graph_sizes.png").is_file()
    curves = pd.read_csv(out / "faithfulness.csv")
    assert set(curves["prompt"]) == {"eiffel", "colours"}


def test_a_description_is_shown_with_its_score(checkout):
    graph = json.loads((checkout / "data/circuits/0/graphs/topk-eiffel.json").read_text())
    labels = {node["layer"]: node["clerp"] for node in graph["nodes"] if "transcoder" in node["feature_type"]}
    assert labels.get("4", "some words (score 0.75)") == "some words (score 0.75)"
    assert labels["12"].startswith("L12 latent")


def test_connections_name_a_latent_of_an_earlier_layer(checkout):
    table = pd.read_parquet(checkout / "data/circuits/0/connections-plt.parquet")
    assert len(table) == 64 * 3
    assert set(table["layer"]) == {12}
    assert set(table["from_layer"]) == {4}


def test_the_same_again_gives_the_same_bytes(checkout, monkeypatch, tmp_path):
    shutil.copytree(checkout, tmp_path / "again", symlinks=True)
    monkeypatch.chdir(tmp_path / "again")
    params = YAML().load(tmp_path / "again/params.yaml")
    params["runs"]["variants"] = ["topk"]
    YAML().dump(params, tmp_path / "again/params.yaml")
    YAML().dump(PROMPTS[:1], tmp_path / "again/prompts/circuits.yaml")
    circuits.run(0)
    for name in ("graphs/topk-eiffel.json", "topk-eiffel.html", "connections-topk.parquet"):
        found, expected = (root / "data/circuits/0" / name for root in (tmp_path / "again", checkout))
        assert found.read_bytes() == expected.read_bytes(), name


def test_a_seed_without_runs_is_refused():
    with pytest.raises(UserError, match=r"circuits\.seeds: seed 3 is not in runs\.seeds"):
        parse(changed(circuits__seeds=[3]), "params.yaml")


def test_the_stage_is_off_as_delivered():
    assert parse(changed(), "params.yaml").circuits.seeds == []


def test_the_delivered_prompts_are_of_four_tasks():
    prompts = read_prompts(ROOT / "prompts/circuits.yaml")
    assert {prompt.task for prompt in prompts} == {"factual recall", "induction", "agreement", "first letter"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {name: a}", r"0\.task: Field required"),
        ("- {name: a b, task: t, text: x, answer: y, foil: z}", r"0\.name: String should match"),
        ("[]", "no prompts"),
        ("- {name: a, task: t, text: x, answer: y, foil: z}\n" * 2, r"names repeat: \['a'\]"),
        ("a: [", "not valid YAML"),
        (None, "no such file"),
    ],
)
def test_mistakes_in_the_prompts_are_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_prompts(tmp_path / "p.yaml")
