"""The sanity checks, each of which can fail."""

import pandas as pd
import pytest
from comparison_support import EVALUATION

from transcoders.comparison.checks import as_markdown, sanity_checks

HISTORY = pd.DataFrame({"nmse": [1.0, 0.3]})
GOOD = pd.Series(EVALUATION | {"dead_fraction": 0.05})


def failed(row=GOOD, history=HISTORY, affine_fvu=0.5):
    return [check.name for check in sanity_checks("topk-9-0", 32, history, row, affine_fvu) if not check.passed]


def test_a_good_run_passes_all():
    assert failed() == []


@pytest.mark.parametrize(
    ("name", "value"), [("l0", 30.0), ("nmse", 0.5), ("cosine", 0.7), ("r2", 0.5), ("dead_fraction", 0.1)]
)
def test_each_figure_has_its_limit(name, value):
    row = GOOD.copy()
    row[name] = value
    assert failed(row) == [name]


def test_a_loss_that_did_not_fall_and_a_fit_worse_than_the_affine_map_fail():
    assert failed(history=pd.DataFrame({"nmse": [1.0, 0.95]})) == ["loss_decreased"]
    assert failed(history=pd.DataFrame({"nmse": [1.0, float("nan")]})) == ["loss_decreased"]
    assert failed(affine_fvu=0.3) == ["beats_affine"]


def test_a_remedy_stands_only_where_it_is_needed():
    text = as_markdown(sanity_checks("topk-9-0", 32, HISTORY, GOOD, 0.3))
    assert text.count("train longer") == 1
    assert "| topk-9-0 | beats_affine | 1.033 | fvu / affine map's < 1 | **no** | the latents add nothing yet" in text
