"""The committed results of the default run are the numbers that it gave before the code was rearranged.

A change that means to move them writes tests/reference/default_run.json anew, and says so.
"""

import json
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
REFERENCE = json.loads((ROOT / "tests/reference/default_run.json").read_text())


def test_every_row_of_the_table_is_there_and_no_other():
    assert {path.stem for path in (ROOT / "metrics").iterdir()} == set(REFERENCE)


@pytest.mark.parametrize("name", REFERENCE)
def test_the_table_has_the_same_numbers(name):
    figures = json.loads((ROOT / f"metrics/{name}.json").read_text())
    digits = {key: 1 if key == "l0" else 4 for key in figures}
    assert figures == {key: round(value, digits[key]) for key, value in REFERENCE[name].items()}


def test_the_figures_are_drawn_from_these_numbers():
    table = pd.read_csv(ROOT / "plots/data/comparison.csv").set_index("name")
    for name, figures in REFERENCE.items():
        assert table.loc[name, "fvu"] == pytest.approx(figures["fvu"], rel=1e-5), name
