"""The verdict on planted families: do nested dictionaries absorb less than plain ones?"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transcoders.evaluation.intervals import unequal_l0, verdict, with_percentiles
from transcoders.planted.kinds import Kind

MEASURES = ("absorption", "contamination", "splitting", "hedging", "lost", "found")
"""Columns of the table of families. Of all but the last, less is better."""
TOLERANCE = 0.02
"""How far from 0 a control's absorption may be: beyond it, and its interval too, the verdict is withdrawn."""
BY_CHANCE = 0.05
"""Share of parents that an untrained dictionary may seem to have."""
LEAST_PAIRS = 20
"""Families, of all seeds, that both dictionaries must have for a verdict."""


class PlantedRun(NamedTuple):
    """Hold what stage `planted` wrote of one run."""

    families: pd.DataFrame
    metrics: Mapping[str, float]


HYPOTHESES = {
    "absorption": ("H1", "less absorption"),
    "contamination": ("H1", "less contamination"),
    "splitting": ("H2", "less splitting"),
    "hedging": ("", "less hedging"),
    "lost": ("", "fewer lost parents"),
}
Runs = Mapping[int, PlantedRun]
"""By seed."""


def judge(ours: Runs, theirs: Runs, resamples: int) -> list[dict[str, Any]]:
    """Return a row for each measure: effect (ours less theirs), interval, pairs, seeds, controls, verdict, reason.

    Families are the same in all runs, so that differences are paired by family; the 95 % interval is a bootstrap over
    seeds and, within them, over families.
    """
    seeds = sorted(set(ours) & set(theirs))
    obstacle = _obstacle([*ours.values(), *theirs.values()])
    rows = []
    for measure in MEASURES:
        differences = [_differences(ours[seed].families, theirs[seed].families, measure) for seed in seeds]
        pairs = sum(map(len, differences))
        effect, low, high = _interval(differences, resamples)
        few = f"only {pairs} pairs" if pairs < LEAST_PAIRS else ""
        reason = obstacle or few
        rows.append(
            {
                "measure": measure,
                "ours": _mean(ours, measure),
                "theirs": _mean(theirs, measure),
                "effect": effect,
                "low": low,
                "high": high,
                "pairs": pairs,
                "seeds": len(seeds),
                "verdict": "undecided" if reason else _verdict(measure, low, high),
                "reason": reason,
            }
        )
    return rows


def as_hypotheses(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the table of verdicts that speak of a hypothesis, or of the price, as all tasks tell them."""
    rows = verdicts[verdicts["measure"].isin(HYPOTHESES)].rename(columns={"reason": "note"})
    names = [HYPOTHESES[measure] for measure in rows["measure"]]
    return rows.assign(
        hypothesis=[name for name, _ in names],
        statement=[statement for _, statement in names],
        task="planted families",
        measured_on=[f"{pairs} families" for pairs in rows["pairs"]],
    )


def table_of_runs(runs: Mapping[str, Runs]) -> pd.DataFrame:
    """Return a row for each variant and seed: its validation error, its L0, and each measure's mean over families."""
    rows = [
        {
            "variant": variant,
            "seed": seed,
            "nmse": run.metrics["best_validation_nmse"],
            "l0": run.metrics["l0"],
            **{measure: _nested(run.families, measure).mean() for measure in MEASURES},
        }
        for variant, of_variant in runs.items()
        for seed, run in of_variant.items()
    ]
    return pd.DataFrame(rows, columns=["variant", "seed", "nmse", "l0", *MEASURES])


def _full(table: pd.DataFrame, kind: Kind) -> pd.DataFrame:
    """Return the families of one kind as the full dictionary has them, by number."""
    full = table[(table["prefix"] == table["prefix"].max()) & (table["kind"] == kind)]
    return full.set_index("family")


def _nested(table: pd.DataFrame, measure: str) -> pd.Series:
    return _full(table, Kind.NESTED)[measure].astype(float)


def _mean(runs: Runs, measure: str) -> float:
    return float(pd.Series([_nested(run.families, measure).mean() for run in runs.values()]).mean())  # NaN: in none


def _differences(ours: pd.DataFrame, theirs: pd.DataFrame, measure: str) -> NDArray[np.float64]:
    """Return ours less theirs of each family of which both are known."""
    difference = _nested(ours, measure) - _nested(theirs, measure)
    return np.asarray(difference.dropna(), np.float64)


def _interval(differences: list[NDArray[np.float64]], resamples: int) -> tuple[float, float, float]:
    """Return the mean difference and the 2.5 % and 97.5 % percentiles of resamples of seeds and families."""
    filled = [values for values in differences if len(values)]
    if not filled:
        return float("nan"), float("nan"), float("nan")
    rng = np.random.default_rng(0)
    means = [np.concatenate(filled).mean()]
    for _ in range(resamples):
        seeds = rng.integers(len(filled), size=len(filled))
        means.append(np.concatenate([rng.choice(filled[seed], len(filled[seed])) for seed in seeds]).mean())
    return with_percentiles(np.array(means))


def _verdict(measure: str, low: float, high: float) -> str:
    return verdict(-high, -low) if measure == "found" else verdict(low, high)


def _obstacle(runs: list[PlantedRun]) -> str:
    """Say which control fails, or that the dictionaries are not equally sparse; empty where nothing is amiss."""
    if sparsity := unequal_l0([run.metrics["l0"] for run in runs]):
        return sparsity
    if max(run.metrics["untrained.found"] for run in runs) > BY_CHANCE:
        return "parents seem to be in an untrained dictionary"
    if any(
        abs(run.metrics["made_by_hand.absorption"] - 1) > TOLERANCE
        or abs(run.metrics["made_by_hand.contamination"] - 0.5**0.5) > TOLERANCE
        for run in runs
    ):
        return "a dictionary made to absorb is not measured as one"
    for kind, name in ((Kind.CHILDLESS, "families without children"), (Kind.INDEPENDENT, "independent children")):
        values = np.concatenate([_full(run.families, kind)["absorption"].dropna() for run in runs])
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.inf
        if len(values) and abs(values.mean()) > TOLERANCE + 2 * error:
            return f"absorption of {values.mean():.3f} in the control: {name}"
    return ""


def half_width(rows: list[dict[str, Any]]) -> float:
    """Return half of the width of absorption's interval: what effect could have been seen."""
    row = next(row for row in rows if row["measure"] == "absorption")
    return float(row["high"] - row["low"]) / 2
