"""What the stages measured of each run, and the table with a row for each run, baseline and official transcoder."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from transcoders.absorption.settings import COMPARED
from transcoders.comparison.columns import SCORES, TERMINAL

LONGEST_NAME = 100


class RunResult(NamedTuple):
    """Hold what the stages wrote of one trained transcoder."""

    name: str
    variant: str
    layer: int
    seed: int
    config: dict[str, Any]
    """Of the transcoder: d_hidden, k and what else its file says."""
    training: dict[str, Any]
    history: pd.DataFrame
    evaluation: dict[str, Any]
    documents: pd.DataFrame
    """Sums over each test document, of which fractions and their intervals are made."""
    absorption: dict[str, Any]
    categories: pd.DataFrame
    features: dict[str, Any]

    def row(self) -> dict[str, Any]:
        """Return the run's row of the table; a run of which no latent was described has no detection score."""
        described = {key: self.features[key] for key in SCORES if key in self.features}
        return {
            "name": self.name,
            "kind": "trained",
            "variant": self.variant,
            "layer": self.layer,
            "seed": self.seed,
            "d_hidden": self.config["d_hidden"],
            "k": self.config["k"],
            "training_tokens": self.training["tokens"],
            **{key: self.absorption[key] for key in COMPARED if key in self.absorption},
            **{key: value for key, value in self.evaluation.items() if isinstance(value, float)},
            **described,
        }


def runs_table(results: Iterable[RunResult], others: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Return the table: a row for each run, then the rows of ``others``, the baselines' and official tables."""
    rows: list[dict[Any, Any]] = [dict(result.row()) for result in results]
    return pd.DataFrame(rows + [row for table in others for row in table.to_dict("records")])


def with_floor(baselines: pd.DataFrame, floor: Mapping[str, float]) -> pd.DataFrame:
    """Return a layer's ``baselines``, the untrained one with what its descriptions score (``floor``)."""
    scores = {key: floor[key] for key in SCORES if key in floor}
    untrained = baselines["variant"] == "untrained"
    return baselines.assign(**{key: np.where(untrained, score, np.nan) for key, score in scores.items()})


def for_terminal(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the figures of ``TERMINAL`` that each row of the table has, by the name of a file for them.

    They are rounded to what a line has room for; ``table`` itself has more digits.
    """
    metrics: dict[str, dict[str, float]] = {}
    for row in table.to_dict("records"):
        values = {key: row.get(column) for key, column in TERMINAL.items()}
        metrics[_file_name(str(row["name"]), metrics)] = {
            key: round(float(value), 1 if key == "l0" else 4) for key, value in values.items() if pd.notna(value)
        }
    return metrics


def _file_name(name: str, taken: Iterable[str]) -> str:
    """Return ``name`` with hyphens for what no file's name should hold, and a number if it is taken already."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[-LONGEST_NAME:] or "unnamed"
    numbered = [safe, *(f"{safe}-{number}" for number in range(2, len([*taken]) + 2))]
    return next(candidate for candidate in numbered if candidate not in taken)
