"""The table of runs, baselines and official transcoders, and what of it a terminal shows."""

from pathlib import Path

import pandas as pd
from comparison_support import EVALUATION, result

from transcoders.comparison.columns import TERMINAL
from transcoders.comparison.results import for_terminal, runs_table
from transcoders.core.tables import six_digits

BASELINES = pd.DataFrame([{"name": "mean-9", "kind": "baseline", "variant": "mean", "layer": 9, "fvu": 1.00406}])


def test_a_run_has_the_figures_of_every_stage_and_no_other_text():
    row = result("topk", 9, 0).row()
    assert list(row)[:8] == ["name", "kind", "variant", "layer", "seed", "d_hidden", "k", "training_tokens"]
    assert row["mean_absorption"] == 0.05
    assert row["fvu"] == EVALUATION["fvu"]
    assert row["detection_score"] == 0.7123
    assert "split_hash" not in row
    assert "categories" not in row
    assert not [name for name in row if "seconds" in name]
    assert "detection_score" not in result("topk", 9, 0, features={"living": 3.0}).row()


def test_baselines_and_official_transcoders_follow_the_runs():
    table = runs_table([result("topk", 9, 0), result("plt", 9, 0)], [BASELINES, pd.DataFrame(columns=["name"])])
    assert table["name"].tolist() == ["topk-9-0", "plt-9-0", "mean-9"]
    assert table["layer"].dtype == "int64"
    assert table["l0"].isna().tolist() == [False, False, True]


def test_a_terminal_shows_a_dozen_figures_of_which_a_row_has_what_it_has():
    official = pd.DataFrame([{"name": "org/repo:layer_9/l0_76", "kind": "official", "fvu": 0.2, "l0": 75.98}])
    metrics = for_terminal(runs_table([result("topk", 9, 0)], [BASELINES, official]))
    assert list(metrics) == ["topk-9-0", "mean-9", "org-repo-layer_9-l0_76"]
    assert list(metrics["topk-9-0"]) == list(TERMINAL)
    assert len(TERMINAL) == 12
    assert metrics["topk-9-0"]["kl"] == 0.0738
    assert metrics["mean-9"] == {"fvu": 1.0041}
    assert metrics["org-repo-layer_9-l0_76"] == {"fvu": 0.2, "l0": 76.0}


def test_names_of_files_are_safe_short_and_each_given_once():
    names = ["a/b", "a:b", "../a//b/", "://", "é" * 300, "x" * 300]
    table = pd.DataFrame([{"name": name, "fvu": 0.5} for name in names])
    assert list(for_terminal(table)) == ["a-b", "a-b-2", "a-b-3", "unnamed", "unnamed-2", "x" * 100]


def test_fractions_are_rounded_and_nothing_else_is():
    table = pd.DataFrame({"a": [0.12345678, None], "tokens": [12345678, 1], "note": ["1.23456789", ""]})
    expected = {"a": [0.123457, -1], "tokens": [12345678, 1], "note": ["1.23456789", ""]}
    assert six_digits(table).fillna(-1).to_dict("list") == expected


def test_the_glossary_explains_every_column_of_the_terminal():
    glossary = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    for column, metric in TERMINAL.items():
        assert f"| `{column}` | `{metric}` |" in glossary
        assert glossary.count(f"`{metric}`") > 1, f"{metric} is named and not explained"
