"""The interventions stage on the real model, with small random transcoders at two layers and across them."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from circuits_support import random_cross_layer, random_transcoders
from ruamel.yaml import YAML
from test_params import ROOT, changed

from stages import interventions
from stages.common.spans import LayersRun
from stages.preset import AllParams
from transcoders.circuits import intervene
from transcoders.circuits.interventions import Intervention
from transcoders.circuits.parts import load_parts
from transcoders.circuits.prompts import SteeredPrompt, read_prompts
from transcoders.circuits.settings import InterventionSettings
from transcoders.circuits.steering import dose_response, generate, perplexity
from transcoders.core.errors import UserError
from transcoders.dictionary.crosslayer import files
from transcoders.language.model import load_tokenizer
from transcoders.language.tokens import text_ids

PROMPTS = [
    {"name": "eiffel", "text": "The Eiffel Tower is in <b>", "answer": " Paris"},
    {
        "name": "colours",
        "text": "red blue green red blue",
        "answer": " green",
        "steer": [{"layer": 4, "latent": 3, "value": 9.0, "first": 2}, {"layer": 12, "latent": 5, "value": 7.0}],
    },
]
SETTINGS = InterventionSettings(tokens=5, doses=[0.0, 1.0, 4.0])
BIG = {"d_model": 640, "d_hidden": 64, "k": 8}


@pytest.fixture(scope="module")
def parts(gemma):
    return load_parts(gemma, torch.device("cpu"))


@pytest.fixture(scope="module")
def tokenizer(gemma):
    return load_tokenizer(gemma)


@pytest.fixture(scope="module")
def singles():
    return random_transcoders([4, 12], **BIG)


@pytest.fixture(scope="module")
def checkout(gemma, singles, tmp_path_factory):
    root = tmp_path_factory.mktemp("interventions")
    params = changed(
        interventions={
            "seeds": [0],
            "crosslayer": ["clt-4and12-0"],
            "prompts": "inputs/prompts/interventions.yaml",
            "tokens": 5,
            "doses": [0.0, 1.0, 4.0],
        },
        collect__layers=[4, 12],
        runs__layers=[4, 12],
        runs__variants=["topk"],
    )
    YAML().dump(params, root / "params.yaml")
    (root / "inputs/prompts").mkdir(parents=True)
    YAML().dump(PROMPTS, root / "inputs/prompts/interventions.yaml")
    (root / "data").mkdir()
    (root / "data/model").symlink_to(gemma)
    for layer, model in singles.items():
        model.save(root / f"models/topk-{layer}-0")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        files.save(random_cross_layer((4, 12), **BIG), LayersRun.named("clt-4and12-0").model)
        interventions.work(0)
    return root


def test_every_dose_of_every_set_is_in_the_table_and_on_the_page(checkout):
    out = checkout / "data/interventions/0"
    table = pd.read_csv(out / "doses.csv")
    assert len(table) == 2 * 2 * (1 + 2 * 3)
    assert set(table["transcoders"]) == {"topk", "clt-4and12"}
    alone = table[table["group"] == "none"]
    assert (alone["kl"] == 0).all()
    for column in ("logit", "logit_attention_frozen", "logit_all_frozen"):
        assert np.allclose(alone[column], alone["logit"], atol=1e-3)
    explicit = table[(table["prompt"] == "colours") & (table["group"] == "chosen")]
    assert set(explicit["latents"]) == {"4/3 12/5"}
    assert explicit.loc[explicit["dose"] == 4, "kl"].min() > 1e-4
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["topk"]["prompts"] == 2
    drop = alone.set_index(["transcoders", "prompt"])["logit"]
    ablated = table[(table["group"] == "chosen") & (table["dose"] == 0)].set_index(["transcoders", "prompt"])["logit"]
    expected = (drop - ablated).loc["topk"].mean()
    assert metrics["topk"]["chosen_ablated_drop"] == pytest.approx(expected, abs=1e-4)
    page = (out / "index.html").read_text()
    assert page.count("<h2>") == 4
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert (out / "doses.svg").is_file()


def test_the_same_again_gives_the_same_bytes(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    out = checkout / "data/interventions/0"
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    interventions.work(0)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_without_interventions_the_text_is_the_models_own(parts, singles, tokenizer):
    tokens = torch.tensor([2, *text_ids(tokenizer, "The capital of France is")])
    (made,) = generate(parts, singles, tokens, [[]], 12, ())
    theirs = parts.model.generate(tokens[None], max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert made == theirs[0, len(tokens) :].tolist()
    log_p = parts.model(theirs).logits[0].log_softmax(-1)[len(tokens) - 1 : -1]
    expected = float(log_p[torch.arange(12), theirs[0, len(tokens) :]].mean().neg().exp())
    assert perplexity(parts, tokens, [made])[0] == pytest.approx(expected, rel=1e-4)
    end = next(token for token in made if token != made[0])
    assert generate(parts, singles, tokens, [[], []], 12, [end]) == [made[: made.index(end)]] * 2
    assert np.isnan(perplexity(parts, tokens, [[]])[0])


def test_a_steered_text_is_that_of_passes_over_all_of_it(parts, singles, tokenizer):
    """An open slice steers what is generated: with a cache as without, where every pass reads the whole text."""
    tokens = torch.tensor([2, *text_ids(tokenizer, "My favourite food is")])
    held = [Intervention(4, 3, slice(2, None), 40.0)]
    steered, alone = generate(parts, singles, tokens, [held, []], 8, ())
    assert steered != alone
    text = tokens
    for _ in range(8):
        (token,) = generate(parts, singles, text, [held], 1, ())[0]
        text = torch.cat([text, torch.tensor([token])])
    assert text[len(tokens) :].tolist() == steered


def test_the_door_shows_the_model_with_and_without(gemma, singles, parts, tokenizer):
    text = "The capital of France is"
    held = [Intervention(4, 3, slice(2, None), 40.0)]
    result = intervene(text, held, singles, model=gemma, tokens=4)
    ids = torch.tensor([2, *text_ids(tokenizer, text)])
    assert result.words == ["<bos>", "The", " capital", " of", " France", " is"]
    assert torch.allclose(result.before, parts.model(ids[None]).logits[0], atol=1e-3)
    made = generate(parts, singles, ids, [[], held], 4, ())
    assert [result.text_before, result.text_after] == [tokenizer.decode(row) for row in made]
    assert torch.equal(result.before[1], result.after[1])
    assert not torch.allclose(result.before[2], result.after[2], atol=1e-2)
    with pytest.raises(UserError, match=r"text: 32[0-9]+ tokens are more than the model's 32768 positions"):
        intervene(text, held, singles, model=gemma, tokens=32_768)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"answer": " Rumpelstiltskin"}, r"the answer ' Rumpelstiltskin' is 6 tokens; give one that is a single token"),
        ({"text": "word " * 40_000}, r"interventions\.prompts: x"),
        ({"steer": [{"layer": 4, "latent": 64, "value": 1.0}]}, "the layer has latents 0 to 63"),
        ({"steer": [{"layer": 5, "latent": 0, "value": 1.0}]}, "no transcoder of this layer"),
        ({"steer": [{"layer": 4, "latent": 0, "value": 1e38}]}, "no finite number"),
    ],
)
def test_what_cannot_be_steered_is_one_line(parts, singles, tokenizer, prompt, message):
    given = SteeredPrompt(**({"name": "x", "text": "The capital is", "answer": " Paris"} | prompt))
    with pytest.raises(UserError, match=message) as refused:
        dose_response(parts, singles, tokenizer, given, SETTINGS.model_copy(update={"doses": [8.0]}))
    assert "\n" not in str(refused.value)


def test_delivered_prompts_are_valid_and_the_stage_is_off(tokenizer):
    prompts = read_prompts(ROOT / "inputs/prompts/interventions.yaml", SteeredPrompt, "interventions.prompts")
    assert len(prompts) >= 10
    assert all(len(text_ids(tokenizer, prompt.answer)) == 1 for prompt in prompts)
    assert AllParams.parse(changed(), "params.yaml").interventions.seeds == []
    with pytest.raises(UserError, match=r"interventions\.seeds: \[5\] are not in runs\.seeds"):
        AllParams.parse(changed(interventions__seeds=[5]), "params.yaml")
