"""Differences between variants, with intervals over documents and seeds."""

import numpy as np
import pandas as pd
import pytest
from comparison_support import result

from transcoders.comparison.contrast import contrast, contrasts, pairs
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.training.settings import VariantSettings

NESTED = {"prefixes": (0.5, 1.0), "prefix_k": (0.5, 1.0)}


def table(seed, excess=0.0):
    rng = np.random.default_rng(seed)
    documents = np.random.default_rng(0).uniform(1, 2, 50)
    frame = pd.DataFrame({"tokens": 10.0, "error": documents * 0.3 + excess, "variation": documents + 1})
    frame["loss_tokens"], frame["ce_clean"], frame["ce_zero"] = 10.0, 30 + rng.normal(size=50), 40.0
    frame["ce_replaced"] = frame["ce_clean"] + 2 + excess
    frame.loc[3] = 0.0
    return frame


def test_a_contrast_is_the_difference_of_ratios_with_an_interval_that_holds_it():
    settings = EvaluateSettings(bootstrap=300)
    ours, theirs = [table(1, 0.1), table(2, 0.1)], [table(1), table(2)]
    differences = contrast(ours, theirs, settings)
    fvu = [np.mean([t["error"].sum() / t["variation"].sum() for t in side]) for side in (ours, theirs)]
    difference, low, high = differences["fvu"]
    assert difference == pytest.approx(fvu[0] - fvu[1])
    assert 0 < low < difference < high
    assert differences["delta_ce"][0] == pytest.approx(0.01)
    assert differences["loss_recovered"][1] <= differences["loss_recovered"][0] <= differences["loss_recovered"][2] < 0
    assert contrast(ours, ours[::-1], settings)["fvu"][0] == pytest.approx(0, abs=1e-12)


def test_variants_of_full_width_stand_against_the_plain_one_and_progressive_ones_against_joint_ones():
    variants = {
        "small": VariantSettings(d_hidden_share=0.5),
        "plt": VariantSettings(**NESTED, training="progressive"),
        "matryoshka": VariantSettings(**NESTED),
        "skip": VariantSettings(skip=True),
        "topk": VariantSettings(),
    }
    with_plain = [("plt", "topk"), ("matryoshka", "topk"), ("skip", "topk")]
    assert pairs(variants) == [*with_plain, ("plt", "matryoshka")]
    assert pairs({"skip": VariantSettings(skip=True)}) == []


def test_the_table_has_every_pair_at_every_layer_with_the_runs_of_that_layer_alone():
    runs = [
        result(name, layer, seed, dead=share * (1 + seed / 100), documents=table(seed, excess))
        for name, share, excess in (("topk", 0.1, 0.0), ("skip", 0.3, 0.1))
        for layer, share in ((0, share), (9, 2 * share))
        for seed in (0, 1)
    ]
    variants = {"topk": VariantSettings(), "skip": VariantSettings(skip=True)}
    differences = contrasts(runs, variants, EvaluateSettings(bootstrap=100))
    assert differences.groupby("layer").size().to_dict() == {0: 5, 9: 5}
    assert set(differences["seeds"]) == {2}
    dead = differences[differences["metric"] == "dead_fraction"].set_index("layer")["difference"]
    assert dead.to_dict() == pytest.approx({0: 0.201, 9: 0.402})
    skip, topk = ([r.documents for r in runs if (r.variant, r.layer) == (name, 9)] for name in ("skip", "topk"))
    expected = contrast(skip, topk, EvaluateSettings(bootstrap=100))
    row = differences[(differences["layer"] == 9) & (differences["metric"] == "fvu")].iloc[0]
    assert (row["difference"], row["low"], row["high"]) == expected["fvu"]


def test_one_seed_gives_no_interval_to_what_no_document_has_a_part_in():
    runs = [result(name, 9, 0, documents=table(0)) for name in ("topk", "skip")]
    differences = contrasts(
        runs, {"topk": VariantSettings(), "skip": VariantSettings(skip=True)}, EvaluateSettings(bootstrap=50)
    )
    missing = differences.set_index("metric")["low"].isna()
    assert missing.to_dict() == {
        "fvu": False,
        "delta_ce": False,
        "loss_recovered": False,
        "dead_fraction": True,
        "mean_max_cosine": True,
    }
