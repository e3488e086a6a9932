"""Verdicts on hypotheses, from what the stages write."""

import json

import numpy as np
import pandas as pd
import pytest

from stages.hypotheses import Effect, Side, as_markdown, as_metrics, effect, hypotheses, judge, verdict
from stages.params import load_params

LETTERS = 12


def side(absorption, *, splitting=0.0, dead=0.1, seeds=3, l0=32.0, main_f1=0.9, noise=0.01, seed=0):
    rng = np.random.default_rng(seed)
    letters = np.linspace(-0.05, 0.05, LETTERS)
    return Side(
        absorption + letters + noise * rng.normal(size=(seeds, LETTERS)),
        splitting + noise * rng.normal(size=(seeds, LETTERS)),
        np.full((seeds, LETTERS), main_f1),
        dead=dead + noise / 10 * rng.normal(size=seeds),
        latents=5120, l0=l0, tokens=30_000, words=900, training_tokens=600_000,
    )  # fmt: skip


def verdicts(ours, theirs):
    return {row["hypothesis"]: row["verdict"] for row in judge(ours, theirs)}


def test_a_clear_difference_is_supported_or_refuted_and_no_difference_is_undecided():
    assert verdicts(side(0.1, splitting=1.0, dead=0.1), side(0.4, splitting=0.2, dead=0.1, seed=1)) == {
        "H1": "supported", "H2": "refuted", "H3": "undecided",
    }  # fmt: skip
    assert verdict(Effect(-0.1, -0.2, 0.01)) == "undecided"


def test_seeds_that_disagree_widen_the_interval():
    theirs = np.array([0.4, 0.4, 0.4])
    close = effect(np.array([0.29, 0.30, 0.31]), theirs, 0.01)
    apart = effect(np.array([0.1, 0.3, 0.5]), theirs, 0.01)
    assert close.effect == apart.effect == pytest.approx(-0.1)
    assert close.high < 0 < apart.high


def test_the_interval_holds_no_difference_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4000, 2, 3))
    held = [found.low < 0 < found.high for found in (effect(a, b, 0.0) for a, b in draws)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_nothing_is_decided_without_latents_for_letters_or_at_another_l0():
    rows = judge(side(0.1, main_f1=0.2), side(0.4, main_f1=0.2))
    assert [row["verdict"] for row in rows[:2]] == ["undecided"] * 2
    assert "only 0 of 12 letters" in rows[0]["note"]
    assert rows[2]["note"] == ""
    rows = judge(side(0.1, l0=40.0), side(0.4))
    assert {row["verdict"] for row in rows} == {"undecided"}
    assert "L0 differs" in rows[0]["note"]


@pytest.fixture
def root(tmp_path):
    def write(path, content):
        path = tmp_path / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))

    def results(name, absorption, dead):
        table = pd.DataFrame({"letter": list("abcdefg"), "probe_f1": 0.9, "kept": True, "words": 50.0})
        table["mean_absorption"], table["splitting"], table["main_f1"] = absorption, 0.0, 0.8
        table.loc[7] = {"letter": "q", "probe_f1": 0.2, "kept": False}
        write(f"data/absorption/{name}.csv", table.to_csv(index=False))
        write(f"data/density/{name}.csv", "log10_frequency,latents\n-inf,20\n-1.0,180\n")
        write(f"metrics/evaluate/{name}.json", {"dead_fraction": dead, "l0": 32.0, "tokens": 1000.0})
        write(f"metrics/cost/{name}.json", {"tokens": 600})

    for seed in (0, 1, 2):
        results(f"topk-9-{seed}", 0.5 + seed / 100, 0.2)
        results(f"matryoshka-9-{seed}", 0.1 + seed / 100, 0.2)
    return tmp_path


def params(seeds, variants=("topk", "matryoshka", "topk_320")):
    full = load_params()
    runs = full.runs.model_copy(update={"variants": list(variants), "layers": [9], "seeds": seeds})
    return full.model_copy(update={"runs": runs})


def test_results_are_read_and_shown_with_what_the_intervals_cover(root):
    rows = hypotheses(params([0, 1, 2]), root)
    assert [(r["hypothesis"], r["variant"], r["against"], r["verdict"]) for r in rows] == [
        ("H1", "matryoshka", "topk", "supported"),
        ("H2", "matryoshka", "topk", "undecided"),
        ("H3", "matryoshka", "topk", "undecided"),
    ]
    assert rows[0]["effect"] == pytest.approx(-0.4)
    assert rows[0]["measured_on"] == "7 letters, 350 words"
    assert "over 3 seeds and letters" in as_markdown(rows)
    assert "with one seed" in as_markdown(hypotheses(params([0]), root))
    metrics = as_metrics(rows)["hypotheses_matryoshka_against_topk-9"]
    assert metrics["H1"]["verdict"] == "supported"
    json.dumps(metrics, allow_nan=False)


def test_there_is_nothing_to_judge_without_a_plain_or_a_nested_variant(root):
    assert hypotheses(params([0], ["matryoshka"]), root) == []
    assert hypotheses(params([0], ["topk"]), root) == []


def test_a_layer_whose_y_tells_no_letter_is_judged_on_dead_latents_alone():
    none = {name: np.empty((1, 0)) for name in ("absorption", "splitting", "main_f1")}
    rows = judge(side(0.1, dead=0.01, seeds=1)._replace(**none), side(0.4, dead=0.2, seeds=1)._replace(**none))
    assert [(row["hypothesis"], row["verdict"]) for row in rows] == [("H3", "supported")]
