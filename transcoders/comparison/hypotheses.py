"""The hypotheses of the project, judged: what nested variants do better than plain TopK at equal L0."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from transcoders.absorption.settings import LEAST_MAIN_F1
from transcoders.comparison.results import RunResult
from transcoders.evaluation.intervals import unequal_l0, verdict
from transcoders.training.settings import VariantSettings, plain_of

STATEMENTS = {"H1": "less absorption", "H2": "less splitting", "H3": "fewer dead latents"}
CATEGORIES_NEEDED = 5
"""Categories with latents of their own, in both dictionaries, for a verdict on absorption or splitting."""
OF_CATEGORIES = ["mean_absorption", "splitting", "main_f1", "words"]
COLUMNS = (
    "hypothesis",
    "statement",
    "task",
    "variant",
    "against",
    "layer",
    "ours",
    "theirs",
    "effect",
    "low",
    "high",
    "verdict",
    "seeds",
    "training_tokens",
    "measured_on",
    "note",
)


class Effect(NamedTuple):
    """Hold a difference of means and its 95 % interval."""

    effect: float
    low: float
    high: float


class Side(NamedTuple):
    """Hold what one variant reached at one layer, over seeds."""

    absorption: NDArray[np.float64]
    """[seeds, categories], of the categories with a good probe; likewise splitting and main_f1."""
    splitting: NDArray[np.float64]
    main_f1: NDArray[np.float64]
    dead: NDArray[np.float64]
    """[seeds]: share of latents that never fire."""
    task: str
    """What the words of the absorption task are sorted by."""
    latents: int
    l0: float
    tokens: int
    words: int
    training_tokens: int


def hypotheses(results: Sequence[RunResult], variants: Mapping[str, VariantSettings]) -> pd.DataFrame:
    """Judge H1 to H3 for each nested variant of full width against the plain one, at every layer.

    The table has no rows without a plain or without a nested variant among the runs.
    """
    against = plain_of(variants)
    if against is None:
        return pd.DataFrame(columns=COLUMNS)
    nested = [name for name, v in variants.items() if v.prefixes and v.d_hidden_share == v.k_share == 1]
    rows = []
    for layer in dict.fromkeys(result.layer for result in results):
        of_variant = {name: [r for r in results if (r.layer, r.variant) == (layer, name)] for name in variants}
        theirs = side_of(of_variant[against])
        for name in nested:
            common = {"variant": name, "against": against, "layer": layer, "seeds": len(of_variant[name])}
            rows += [row | common for row in judge(side_of(of_variant[name]), theirs)]
    return pd.DataFrame(rows, columns=COLUMNS)


def judge(ours: Side, theirs: Side) -> list[dict[str, Any]]:
    """Return a row for each hypothesis: effect, interval, verdict, and what keeps it from being decided."""
    categories = ours.absorption.shape[1]
    obstacle = _obstacle(ours, theirs)
    measures = {"H3": (ours.dead, theirs.dead, float(np.hypot(_of_latents(ours), _of_latents(theirs))))}
    if categories:
        measures = {
            "H1": (
                ours.absorption.mean(1),
                theirs.absorption.mean(1),
                _of_categories(ours.absorption, theirs.absorption),
            ),
            "H2": (ours.splitting.mean(1), theirs.splitting.mean(1), _of_categories(ours.splitting, theirs.splitting)),
        } | measures
    on_words = f"{categories} categories, {min(ours.words, theirs.words)} words"
    on_latents = f"{ours.latents} latents, {ours.tokens} tokens"
    rows = []
    for name, (a, b, error) in measures.items():
        result = effect(a, b, error)
        note = obstacle["any"] or ("" if name == "H3" else obstacle["categories"])
        rows.append(
            {
                "hypothesis": name,
                "statement": STATEMENTS[name],
                "task": "held-out tokens" if name == "H3" else ours.task,
                "ours": float(a.mean()),
                "theirs": float(b.mean()),
                **result._asdict(),
                "verdict": "undecided" if note else verdict(result.low, result.high),
                "note": note,
                "measured_on": on_latents if name == "H3" else on_words,
                "training_tokens": ours.training_tokens,
            }
        )
    return rows


def _obstacle(ours: Side, theirs: Side) -> dict[str, str]:
    """Say what keeps every hypothesis, or those on categories, from being decided; empty where nothing does."""
    categories = ours.absorption.shape[1]
    of_both = int(((ours.main_f1.mean(0) >= LEAST_MAIN_F1) & (theirs.main_f1.mean(0) >= LEAST_MAIN_F1)).sum())
    few = (
        ""
        if of_both >= CATEGORIES_NEEDED
        else f"only {of_both} of {categories} categories have latents of their own in both"
    )
    return {"any": unequal_l0([ours.l0, theirs.l0]), "categories": few}


def effect(ours: NDArray[np.float64], theirs: NDArray[np.float64], unit_error: float) -> Effect:
    """Return the difference of the means over seeds, with Student's interval.

    Its variance is that between seeds (of both sides) plus ``unit_error`` squared, the standard error
    over what the metric was measured on; with one seed a side only the latter is known.
    """
    difference = float(ours.mean() - theirs.mean())
    freedom = len(ours) + len(theirs) - 2
    between = sum(np.var(side, ddof=1) / len(side) if len(side) > 1 else 0.0 for side in (ours, theirs))
    quantile = stats.t.ppf(0.975, freedom) if freedom else stats.norm.ppf(0.975)
    half = float(quantile * np.sqrt(between + unit_error**2))
    return Effect(difference, difference - half, difference + half)


def _of_categories(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """Return the standard error over categories, which both sides share: its words have the same main latents."""
    differences = ours.mean(0) - theirs.mean(0)
    return float(differences.std(ddof=1) / np.sqrt(len(differences))) if len(differences) > 1 else float("inf")


def _of_latents(side: Side) -> float:
    """Return the standard error over latents of the mean share that is dead."""
    share = float(side.dead.mean())
    return float(np.sqrt(share * (1 - share) / side.latents / len(side.dead)))


def side_of(results: Sequence[RunResult]) -> Side:
    """Gather what one variant reached at one layer, over its seeds."""
    tables = [result.categories for result in results]
    judged = [table[table["kept"].astype(bool)].reindex(columns=OF_CATEGORIES) for table in tables]
    absorption, splitting, main_f1 = (
        np.stack([table[column].to_numpy(dtype=np.float64) for table in judged]) for column in OF_CATEGORIES[:3]
    )
    return Side(
        absorption,
        splitting,
        main_f1,
        dead=np.array([result.evaluation["dead_fraction"] for result in results]),
        task=str(results[0].absorption["task"]),
        latents=int(results[0].config["d_hidden"]),
        l0=float(np.mean([result.evaluation["l0"] for result in results])),
        tokens=int(results[0].evaluation["tokens"]),
        words=int(judged[0]["words"].sum()),
        training_tokens=int(results[0].training["tokens"]),
    )


def as_markdown(table: pd.DataFrame) -> str:
    """Return the table, and what its intervals cover."""
    over = "95 % intervals over what the task is measured on (categories, latents, classes, families), and over seeds."
    if int(table["seeds"].min()) == 1:
        over += " With one seed they say how these runs differ, not how the methods do."
    rows = table.to_markdown(index=False, floatfmt=".3g", missingval="")
    return f"{over} An effect below 0 speaks for the hypothesis.\n\n{rows}"
