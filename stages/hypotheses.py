"""The hypotheses of the project, judged: what nested variants do better than plain TopK at equal L0."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from stages.params import Params
from stages.runs import Run, read_metrics
from transcoders.absorption.measure import TELLS
from transcoders.core.files import rounded
from transcoders.core.tables import read_csv
from transcoders.training.settings import VariantSettings

STATEMENTS = {"H1": "less absorption", "H2": "less splitting", "H3": "fewer dead latents"}
LETTERS_NEEDED = 5
"""Letters with latents of their own, in both dictionaries, for a verdict on absorption or splitting."""
EQUAL_L0 = 0.05
OF_LETTERS = ["mean_absorption", "splitting", "main_f1", "words"]
SHOWN = (
    "hypothesis", "statement", "variant", "against", "layer", "ours", "theirs", "effect", "low", "high", "verdict",
    "seeds", "training_tokens", "measured_on", "note",
)  # fmt: skip


class Effect(NamedTuple):
    """A difference of means and its 95 % interval."""

    effect: float
    low: float
    high: float


class Side(NamedTuple):
    """One variant at one layer, over seeds."""

    absorption: NDArray[np.float64]
    """[seeds, letters], of the letters with a good probe; likewise splitting and main_f1."""
    splitting: NDArray[np.float64]
    main_f1: NDArray[np.float64]
    dead: NDArray[np.float64]
    """[seeds]: share of latents that never fire."""
    latents: int
    l0: float
    tokens: int
    words: int
    training_tokens: int


def hypotheses(params: Params, root: Path = Path()) -> list[dict[str, Any]]:
    """H1 to H3 for each nested variant of full width against the plain one, at every layer.

    Reads what the stages absorption, evaluate and train wrote under ``root``; empty without a plain
    or without a nested variant among the runs.
    """
    variants = {name: params.variants[name] for name in params.runs.variants}
    plain = [name for name, v in variants.items() if v == VariantSettings()][:1]
    nested = [name for name, v in variants.items() if v.prefixes and v.d_hidden_share == v.k_share == 1]
    rows = []
    for layer in params.runs.layers:
        for against in plain:
            theirs = _side(against, layer, params.runs.seeds, root)
            for name in nested:
                ours = _side(name, layer, params.runs.seeds, root)
                common = {"variant": name, "against": against, "layer": layer, "seeds": len(params.runs.seeds)}
                rows += [row | common for row in judge(ours, theirs)]
    return rows


def judge(ours: Side, theirs: Side) -> list[dict[str, Any]]:
    """A row for each hypothesis: effect, interval, verdict, and what keeps it from being decided."""
    letters = ours.absorption.shape[1]
    told = int(((ours.main_f1.mean(0) >= TELLS) & (theirs.main_f1.mean(0) >= TELLS)).sum())
    few = "" if told >= LETTERS_NEEDED else f"only {told} of {letters} letters have latents of their own in both"
    l0 = "" if abs(ours.l0 / theirs.l0 - 1) <= EQUAL_L0 else f"L0 differs: {ours.l0:.3g}, {theirs.l0:.3g}"
    on_words = f"{letters} letters, {min(ours.words, theirs.words)} words"
    found = {"H3": (ours.dead, theirs.dead, np.hypot(_of_latents(ours), _of_latents(theirs)))}
    if letters:
        found = {
            "H1": (ours.absorption.mean(1), theirs.absorption.mean(1), _of_letters(ours.absorption, theirs.absorption)),
            "H2": (ours.splitting.mean(1), theirs.splitting.mean(1), _of_letters(ours.splitting, theirs.splitting)),
        } | found
    rows = []
    for name, (a, b, error) in found.items():
        result = effect(a, b, float(error))
        note = l0 or (few if name != "H3" else "")
        rows.append({
            "hypothesis": name, "statement": STATEMENTS[name], "ours": float(a.mean()), "theirs": float(b.mean()),
            **result._asdict(), "verdict": "undecided" if note else verdict(result), "note": note,
            "measured_on": on_words if name != "H3" else f"{ours.latents} latents, {ours.tokens} tokens",
            "training_tokens": ours.training_tokens,
        })  # fmt: skip
    return rows


def effect(ours: NDArray[np.float64], theirs: NDArray[np.float64], unit_error: float) -> Effect:
    """Difference of the means over seeds, with Student's interval.

    Its variance is that between seeds (of both sides) plus ``unit_error`` squared, the standard error
    over what the metric was measured on; with one seed a side only the latter is known.
    """
    difference = float(ours.mean() - theirs.mean())
    freedom = len(ours) + len(theirs) - 2
    between = sum(np.var(side, ddof=1) / len(side) if len(side) > 1 else 0.0 for side in (ours, theirs))
    quantile = stats.t.ppf(0.975, freedom) if freedom else stats.norm.ppf(0.975)
    half = float(quantile * np.sqrt(between + unit_error**2))
    return Effect(difference, difference - half, difference + half)


def verdict(found: Effect) -> str:
    """Less is better in every hypothesis."""
    if found.high < 0:
        return "supported"
    return "refuted" if found.low > 0 else "undecided"


def _of_letters(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """Standard error over letters, which both sides share: words of a letter have the same main latents."""
    differences = ours.mean(0) - theirs.mean(0)
    return float(differences.std(ddof=1) / np.sqrt(len(differences))) if len(differences) > 1 else float("inf")


def _of_latents(side: Side) -> float:
    share = float(side.dead.mean())
    return float(np.sqrt(share * (1 - share) / side.latents / len(side.dead)))


def _side(variant: str, layer: int, seeds: Sequence[int], root: Path) -> Side:
    names = [Run(variant, layer, seed).name for seed in seeds]
    tables = [read_csv(root / f"data/absorption/{name}.csv", f"absorption@{name}") for name in names]
    kept = [table[table["kept"].astype(bool)].reindex(columns=OF_LETTERS) for table in tables]
    evaluated = [read_metrics("evaluate", name, root=root) for name in names]
    cost = read_metrics("cost", names[0], "train", root)
    absorption, splitting, main_f1 = (
        np.stack([table[column].to_numpy(dtype=np.float64) for table in kept]) for column in OF_LETTERS[:3]
    )
    return Side(
        absorption, splitting, main_f1,
        dead=np.array([e["dead_fraction"] for e in evaluated]),
        latents=int(read_csv(root / f"data/density/{names[0]}.csv", f"evaluate@{names[0]}")["latents"].sum()),
        l0=float(np.mean([e["l0"] for e in evaluated])),
        tokens=int(evaluated[0]["tokens"]), words=int(kept[0]["words"].sum()),
        training_tokens=int(cost["tokens"]),
    )  # fmt: skip


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The table, and what its intervals cover."""
    over = "letters (H1, H2) or latents (H3)"
    covers = (
        f"95 % intervals over {over} only: with one seed they say how these runs differ, not how the methods do."
        if rows[0]["seeds"] == 1
        else f"95 % intervals over {rows[0]['seeds']} seeds and {over}."
    )
    table = pd.DataFrame(rows)[list(SHOWN)].to_markdown(index=False, floatfmt=".3g")
    return f"{covers} An effect below 0 speaks for the hypothesis.\n\n{table}"


def as_metrics(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The same for metrics/compare.json: by pair and layer, then by hypothesis."""
    result: dict[str, Any] = {}
    for row in rows:
        key = f"hypotheses_{row['variant']}_against_{row['against']}-{row['layer']}"
        numbers = rounded({name: row[name] for name in ("ours", "theirs", "effect", "low", "high")
                           if np.isfinite(row[name])})  # fmt: skip
        text = {name: row[name] for name in ("verdict", "seeds", "training_tokens", "measured_on", "note")}
        result.setdefault(key, {})[row["hypothesis"]] = numbers | text
    return result
