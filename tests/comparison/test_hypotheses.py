"""Verdicts on hypotheses, from what the stages write."""

import numpy as np
import pytest
from comparison_support import result

from transcoders.comparison.hypotheses import Side, as_markdown, effect, hypotheses, judge, verdict
from transcoders.training.settings import VariantSettings

LETTERS = 12


def side(absorption, *, splitting=0.0, dead=0.1, seeds=3, l0=32.0, main_f1=0.9, noise=0.01, seed=0):
    rng = np.random.default_rng(seed)
    letters = np.linspace(-0.05, 0.05, LETTERS)
    return Side(
        absorption + letters + noise * rng.normal(size=(seeds, LETTERS)),
        splitting + noise * rng.normal(size=(seeds, LETTERS)),
        np.full((seeds, LETTERS), main_f1),
        dead=dead + noise / 10 * rng.normal(size=seeds),
        task="first letters",
        latents=5120,
        l0=l0,
        tokens=30_000,
        words=900,
        training_tokens=600_000,
    )


def verdicts(ours, theirs):
    return {row["hypothesis"]: row["verdict"] for row in judge(ours, theirs)}


def test_a_clear_difference_is_supported_or_refuted_and_no_difference_is_undecided():
    assert verdicts(side(0.1, splitting=1.0, dead=0.1), side(0.4, splitting=0.2, dead=0.1, seed=1)) == {
        "H1": "supported",
        "H2": "refuted",
        "H3": "undecided",
    }
    assert verdict(-0.2, 0.01) == "undecided"


def test_seeds_that_disagree_widen_the_interval():
    theirs = np.array([0.4, 0.4, 0.4])
    close = effect(np.array([0.29, 0.30, 0.31]), theirs, 0.01)
    apart = effect(np.array([0.1, 0.3, 0.5]), theirs, 0.01)
    assert close.effect == apart.effect == pytest.approx(-0.1)
    assert close.high < 0 < apart.high


def test_the_interval_holds_no_difference_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4000, 2, 3))
    held = [measured.low < 0 < measured.high for measured in (effect(a, b, 0.0) for a, b in draws)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_nothing_is_decided_without_latents_for_letters_or_at_another_l0():
    rows = judge(side(0.1, main_f1=0.2), side(0.4, main_f1=0.2))
    assert [row["verdict"] for row in rows[:2]] == ["undecided"] * 2
    assert "only 0 of 12 categories" in rows[0]["note"]
    assert rows[2]["note"] == ""
    rows = judge(side(0.1, l0=40.0), side(0.4))
    assert {row["verdict"] for row in rows} == {"undecided"}
    assert "L0 differs" in rows[0]["note"]


VARIANTS = {
    "topk": VariantSettings(),
    "matryoshka": VariantSettings(prefixes=(0.5, 1.0), prefix_k=(0.5, 1.0)),
    "nested_320": VariantSettings(prefixes=(0.5, 1.0), prefix_k=(0.5, 1.0), d_hidden_share=0.0625, k_share=0.5),
    "topk_320": VariantSettings(d_hidden_share=0.0625, k_share=0.5),
}


def results(seeds):
    levels = {"topk": 0.5, "matryoshka": 0.1, "nested_320": 0.3, "topk_320": 0.3}
    return [
        result(variant, 9, seed, absorption=level + seed / 100, dead=0.2)
        for variant, level in levels.items()
        for seed in seeds
    ]


def test_nested_variants_of_full_width_are_judged_against_the_plain_one():
    table = hypotheses(results([0, 1, 2]), VARIANTS)
    assert table[["hypothesis", "variant", "against", "verdict"]].to_numpy().tolist() == [
        ["H1", "matryoshka", "topk", "supported"],
        ["H2", "matryoshka", "topk", "undecided"],
        ["H3", "matryoshka", "topk", "undecided"],
    ]
    first = table.iloc[0]
    assert first["effect"] == pytest.approx(-0.4)
    assert (first["measured_on"], first["seeds"], first["training_tokens"]) == ("7 categories, 350 words", 3, 600)
    assert table["measured_on"].iloc[2] == "5120 latents, 1000 tokens"


def test_the_text_says_what_the_intervals_cover():
    assert "With one seed" not in as_markdown(hypotheses(results([0, 1, 2]), VARIANTS))
    assert "With one seed" in as_markdown(hypotheses(results([0]), VARIANTS))


def test_there_is_nothing_to_judge_without_a_plain_or_a_nested_variant():
    for variant in ("matryoshka", "topk"):
        alone = [run for run in results([0]) if run.variant == variant]
        table = hypotheses(alone, {variant: VARIANTS[variant]})
        assert len(table) == 0
        assert "verdict" in table


def test_a_layer_whose_y_tells_no_letter_is_judged_on_dead_latents_alone():
    none = {name: np.empty((1, 0)) for name in ("absorption", "splitting", "main_f1")}
    rows = judge(side(0.1, dead=0.01, seeds=1)._replace(**none), side(0.4, dead=0.2, seeds=1)._replace(**none))
    assert [(row["hypothesis"], row["verdict"]) for row in rows] == [("H3", "supported")]
