"""The circuits stage on the real model, with small random transcoders at two layers."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from circuits_support import random_cross_layer, random_transcoders
from ruamel.yaml import YAML
from test_params import ROOT, changed
from tests_support import make_store

from stages import circuits
from stages.common.spans import LayersRun
from stages.preset import AllParams
from transcoders.circuits import trace
from transcoders.circuits.pages import index_page
from transcoders.circuits.prompts import Prompt, read_prompts
from transcoders.circuits.settings import CircuitSettings
from transcoders.core.errors import UserError
from transcoders.dictionary.crosslayer import files
from transcoders.language.model import load_tokenizer

PROMPTS = [
    {"name": "eiffel", "task": "recall", "text": "The Eiffel Tower is in", "answer": " Paris", "foil": " London"},
    {"name": "colours", "task": "induction", "text": "red blue green red blue", "answer": " green", "foil": " red"},
]
VARIANTS = ["topk", "plt"]
SETS = [*VARIANTS, "clt-4and12"]


@pytest.fixture(scope="module")
def checkout(gemma, tmp_path_factory):
    """A folder as the earlier stages leave it, and the stage run in it."""
    root = tmp_path_factory.mktemp("circuits")
    params = changed(
        circuits__seeds=[0],
        circuits__crosslayer=["clt-4and12-0"],
        circuits__loss_tokens=40,
        circuits__max_latents=60,
        collect__layers=[4, 12],
        runs__layers=[4, 12],
        runs__variants=VARIANTS,
        evaluate__bootstrap=20,
    )
    YAML().dump(params, root / "params.yaml")
    (root / "inputs/prompts").mkdir(parents=True)
    YAML().dump(PROMPTS, root / "inputs/prompts/circuits.yaml")
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
            described = pd.DataFrame({"latent": range(64), "description": f"words of {layer}", "score": 0.75})
            (root / f"data/features/{variant}-{layer}-0").mkdir(parents=True)
            described.to_parquet(root / f"data/features/{variant}-{layer}-0/latents.parquet")
    files.save(random_cross_layer((4, 12), d_model=640, d_hidden=64, k=4), root / "models/clt-4and12-0")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        circuits.work(0)
    return root


def test_every_variant_is_judged_and_compared(checkout):
    metrics = json.loads((checkout / "data/circuits/0/metrics.json").read_text())
    assert set(SETS) <= set(metrics)
    for variant in SETS:
        found = metrics[variant]
        assert found["layers"] == 2
        assert found["ce_with_errors"] == pytest.approx(found["ce_clean"], rel=1e-4)
        assert found["ce_replaced"] > found["ce_clean"]
        assert found["completeness_error"] < 1e-3
        assert found["largest_sum_error"] < 1e-3
        assert found["prompts"] == found["prompts_preferred"] == 2
        assert found["direct_effect_error"] < 1, "in units of what float32 may miss by"
        assert -1 <= found["influence_kl"] <= 1
        assert 0 < found["completeness"] <= 1
        assert 1 <= found["path_length"] <= 3, "an edge, and a latent of each layer"
        assert found["active_latents"] >= found["graph_latents"]
    assert set(metrics) - set(SETS) <= {"plt_over_topk", "clt-4and12_over_topk"}


def test_there_is_a_graph_and_a_page_for_every_prompt(checkout):
    out = checkout / "data/circuits/0"
    slugs = [graph["slug"] for graph in json.loads((out / "graphs/graph-metadata.json").read_text())["graphs"]]
    assert slugs == [f"{variant}-{prompt['name']}" for variant in SETS for prompt in PROMPTS]
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


def test_a_prompt_whose_foil_the_model_prefers_is_marked(checkout, gemma):
    layers = {4: checkout / "models/topk-4-0"}
    asked = {"transcoders": layers, "model": gemma, "settings": CircuitSettings(max_latents=20, ablated=0)}
    wrong = trace("The Eiffel Tower is in", " London", " Paris", **asked)
    assert wrong.metrics["difference"] < 0
    assert "direct_effect_error" not in wrong.metrics
    assert "the model itself prefers" in wrong.page()
    assert "the model itself prefers" not in trace("The Eiffel Tower is in", " Paris", " London", **asked).page()
    row = {"variant": "topk", "prompt": "x", "task": "t", **wrong.metrics}
    assert "prefers the foil" in index_page([row], "title")
    assert "prefers the foil" not in (checkout / "data/circuits/0/index.html").read_text()


def test_a_description_is_shown_with_its_score(checkout):
    graph = json.loads((checkout / "data/circuits/0/graphs/topk-eiffel.json").read_text())
    labels = {node["layer"]: node["clerp"] for node in graph["nodes"] if "transcoder" in node["feature_type"]}
    assert labels.get("4", "words of 4 (score 0.75)") == "words of 4 (score 0.75)"
    assert labels["12"] == "words of 12 (score 0.75)"


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
    params["circuits"]["crosslayer"] = []
    YAML().dump(params, tmp_path / "again/params.yaml")
    YAML().dump(PROMPTS[:1], tmp_path / "again/inputs/prompts/circuits.yaml")
    circuits.work(0)
    for name in ("graphs/topk-eiffel.json", "topk-eiffel.html", "connections-topk.parquet"):
        found, expected = (root / "data/circuits/0" / name for root in (tmp_path / "again", checkout))
        assert found.read_bytes() == expected.read_bytes(), name


def test_one_call_traces_a_prompt(checkout, gemma):
    prompt = ("The Eiffel Tower is in", " Paris", " London")
    settings = CircuitSettings(max_latents=60)
    folders = {layer: checkout / f"models/topk-{layer}-0" for layer in (4, 12)}
    traced = trace(*prompt, transcoders=folders, model=gemma, settings=settings)
    table = pd.read_csv(checkout / "data/circuits/0/prompts.csv").set_index(["variant", "prompt"])
    assert traced.metrics["difference"] == pytest.approx(table.loc[("topk", "eiffel"), "difference"], rel=1e-4)
    assert traced.metrics["completeness_error"] < 1e-3
    assert traced.facts()["graph latents"] == f"{traced.metrics['graph_latents']:.4g}"
    assert "".join(traced.words) == f"<bos>{prompt[0]}"
    written = (checkout / "data/circuits/0/topk-eiffel.html").read_text()
    drawn = traced.page(
        {(layer, latent): f"words of {layer} (score 0.75)" for layer in folders for latent in range(64)}
    )
    assert "words of 12 (score 0.75)" in drawn
    assert svg_of(drawn) == svg_of(written)


def svg_of(html):
    return html[html.index("<svg") : html.index("</svg>")]


@pytest.mark.parametrize(
    ("prompt", "layers", "message"),
    [
        (("The capital is", " Paris", " Paris and London"), [4], "' Paris' and foil ' Paris and London' begin with"),
        (("", " Paris", " London"), [4], "text: is empty"),
        (("The capital is", "", " London"), [4], "answer: is empty"),
        (("The capital is", " Paris", " London"), [], "transcoders: there is none"),
        (("The capital is", " Paris", " London"), [77], "for layer 77; this model has layers 0 to 17"),
    ],
)
def test_what_cannot_be_traced_is_refused(checkout, gemma, prompt, layers, message):
    folders = dict.fromkeys(layers, checkout / "models/topk-4-0")
    with pytest.raises(UserError, match=message):
        trace(*prompt, transcoders=folders, model=gemma)


def test_prompts_outside_inputs_are_refused(checkout, monkeypatch, tmp_path):
    monkeypatch.chdir(checkout)
    shutil.copy("params.yaml", tmp_path)
    params = YAML().load(checkout / "params.yaml")
    params["circuits"]["prompts"] = str(tmp_path / "mine.yaml")
    before = (checkout / "params.yaml").read_bytes()
    YAML().dump(params, checkout / "params.yaml")
    try:
        with pytest.raises(UserError, match=r"circuits\.prompts: .*copy it there.*inputs/prompts/mine\.yaml"):
            circuits.work(0)
    finally:
        (checkout / "params.yaml").write_bytes(before)


def test_a_cross_layer_transcoder_is_traced_in_one_call(checkout, gemma):
    transcoder = files.load(checkout / "models/clt-4and12-0")
    prompt = ("The Eiffel Tower is in", " Paris", " London")
    traced = trace(*prompt, transcoders=transcoder, model=gemma, settings=CircuitSettings(max_latents=60))
    table = pd.read_csv(checkout / "data/circuits/0/prompts.csv").set_index(["variant", "prompt"])
    for name in ("difference", "path_length", "share_without_errors", "graph_latents"):
        assert traced.metrics[name] == pytest.approx(table.loc[("clt-4and12", "eiffel"), name], rel=1e-4)
    assert traced.metrics["completeness_error"] < 1e-3


def test_cross_layer_transcoders_are_traced_with_those_of_their_seed():
    assert LayersRun.named("clt_plt-v2-3to5+9-1") == LayersRun("clt_plt-v2", "3to5+9", 1)
    assert LayersRun.named("clt-0to17-1").name == "clt-0to17-1"
    with pytest.raises(UserError, match=r"circuits\.crosslayer: 'clt-1' is no run"):
        LayersRun.named("clt-1")
    with pytest.raises(UserError, match=r"the seed of clt-0to17-2 is not in circuits\.seeds"):
        AllParams.parse(changed(circuits__seeds=[0], circuits__crosslayer=["clt-0to17-2"]), "params.yaml")


def test_a_seed_without_runs_is_refused():
    with pytest.raises(UserError, match=r"circuits\.seeds: \[3\] are not in runs\.seeds"):
        AllParams.parse(changed(circuits__seeds=[3]), "params.yaml")


def test_the_stage_is_off_as_delivered():
    assert AllParams.parse(changed(), "params.yaml").circuits.seeds == []


def test_the_delivered_prompts_are_of_several_tasks_and_as_many_as_a_correlation_needs():
    prompts = read_prompts(ROOT / "inputs/prompts/circuits.yaml", Prompt, "circuits.prompts")
    assert len(prompts) >= 50
    assert {"factual recall", "induction", "agreement", "first letter"} < {prompt.task for prompt in prompts}


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
        read_prompts(tmp_path / "p.yaml", Prompt, "circuits.prompts")
