"""Verdicts on word classes: are they less split, and absorbed less, in nested dictionaries than in plain ones?"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transcoders.classes.settings import ClassSettings
from transcoders.evaluation.intervals import unequal_l0, verdict, with_percentiles
from transcoders.training.settings import VariantSettings, plain_of

HYPOTHESES = {"H1": ("less absorption", "absorption"), "H2": ("less splitting", "splitting")}
"""Statement, and the measure of which less is better; splitting is 1 - generality."""
VERDICTS = ["hypothesis", "statement", "task", "variant", "against", "layer", "ours", "theirs", "effect", "low", "high"]
VERDICTS += ["verdict", "seeds", "measured_on", "note"]
LEAST_CLASSES = 10
"""Judged classes that a verdict needs; on absorption, such as have a parent latent in both dictionaries."""
LEAST_GENERALITY = 0.3
"""F1 on unseen words from which on a class has a parent latent."""
BY_CHANCE = 0.1
"""Mean generality that random words may seem to have."""


class ClassRun(NamedTuple):
    """Hold what was measured of one dictionary."""

    classes: pd.DataFrame
    l0: float


Runs = Mapping[int, ClassRun]
"""By seed."""


def verdicts(
    runs: Mapping[str, Runs], variants: Mapping[str, VariantSettings], layer: int, settings: ClassSettings
) -> pd.DataFrame:
    """Judge each nested variant of full width against the plain one; no rows without either, or without classes."""
    plain, rows = plain_of(variants), []
    for name, of_variant in runs.items():
        variant = variants[name]
        if plain is not None and variant.prefixes and variant.d_hidden_share == variant.k_share == 1:
            common = {"task": "word classes", "variant": name, "against": plain, "layer": layer}
            rows += [row | common for row in judge(of_variant, runs[plain], settings)]
    return pd.DataFrame(rows, columns=VERDICTS)


def judge(ours: Runs, theirs: Runs, settings: ClassSettings) -> list[dict[str, Any]]:
    """Return a row for each hypothesis: effect (ours less theirs), interval, classes, verdict, and what hinders one.

    Classes are the same in all runs, so that differences are paired by class and seed; the 95 % interval is a bootstrap
    over classes, the same for all seeds, and over seeds.
    """
    seeds = sorted(set(ours) & set(theirs))
    tables = [
        pd.concat([_judged(side[seed].classes, settings) for seed in seeds], keys=seeds) for side in (ours, theirs)
    ]
    general = [table["generality"].groupby("class").mean() >= LEAST_GENERALITY for table in tables]
    has_parents = general[0] & general[1]
    obstacle = _obstacle([*ours.values(), *theirs.values()], len(has_parents))
    few = f"{has_parents.sum()} of {len(has_parents)} classes have a parent in both"
    no_parents = few if has_parents.sum() < LEAST_CLASSES else ""
    rows = []
    for name, (statement, measure) in HYPOTHESES.items():
        chosen = has_parents.index[has_parents] if measure == "absorption" else has_parents.index
        of_ours, of_theirs = (t[measure].unstack(level=0).reindex(chosen).to_numpy(np.float64) for t in tables)
        differences = of_ours - of_theirs
        effect, low, high = _interval(differences, settings)
        note = obstacle or (no_parents if measure == "absorption" else "")
        rows.append(
            {
                "hypothesis": name,
                "statement": statement,
                "ours": _mean(of_ours),
                "theirs": _mean(of_theirs),
                "effect": effect,
                "low": low,
                "high": high,
                "verdict": "undecided" if note else verdict(low, high),
                "seeds": len(seeds),
                "measured_on": f"{int(np.isfinite(differences).any(1).sum())} word classes",
                "note": note,
            }
        )
    return rows


def _judged(table: pd.DataFrame, settings: ClassSettings) -> pd.DataFrame:
    """Return the classes that y tells, and random words do not, by name."""
    told = (table["auroc"] >= settings.least_auroc) & (table["auroc_by_chance"] <= settings.chance_auroc)
    return table[told].assign(splitting=1 - table["generality"]).set_index("class")


def _interval(differences: NDArray[np.float64], settings: ClassSettings) -> tuple[float, float, float]:
    """Return the mean of ``differences`` [classes, seeds] and the 2.5 % and 97.5 % percentiles of resamples of both."""
    if not np.isfinite(differences).any():
        return float("nan"), float("nan"), float("nan")
    rng = np.random.default_rng(settings.seed)
    classes, seeds = differences.shape
    means = [_mean(differences)]
    for _ in range(settings.bootstrap):
        drawn = differences[rng.integers(classes, size=classes)][:, rng.integers(seeds, size=seeds)]
        means.append(_mean(drawn))
    return with_percentiles(np.array(means))


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean of what is known; NaN where nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _obstacle(runs: list[ClassRun], classes: int) -> str:
    """Say what keeps every hypothesis from being decided; empty where nothing does."""
    if sparsity := unequal_l0([run.l0 for run in runs]):
        return sparsity
    by_chance = max(run.classes["generality_by_chance"].mean() for run in runs) if classes else 0.0
    if by_chance > BY_CHANCE:
        return f"random words have parents of F1 {by_chance:.2g}"
    return "" if classes >= LEAST_CLASSES else f"y tells only {classes} classes of words"
