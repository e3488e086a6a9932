"""One variant against another: differences with intervals over seeds and documents."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transcoders.comparison.results import RunResult
from transcoders.evaluation.intervals import paired, with_percentiles
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.training.settings import VariantSettings, plain_of

RATIOS = {
    "fvu": (("error",), ("variation",)),
    "delta_ce": (("ce_replaced", "ce_clean"), ("loss_tokens",)),
    "loss_recovered": (("ce_zero", "ce_replaced"), ("ce_zero", "ce_clean")),
}
"""Metrics that are a ratio of sums over documents: numerator and denominator, a second name subtracted."""
OF_SEEDS = ("dead_fraction", "mean_max_cosine")
"""What no document has a part in: such a difference has an interval over seeds only, and none for one seed."""
COLUMNS = ("layer", "variant", "against", "metric", "difference", "low", "high", "seeds")


def contrasts(
    results: Sequence[RunResult], variants: Mapping[str, VariantSettings], settings: EvaluateSettings
) -> pd.DataFrame:
    """Return every variant against the plain one, and progressive against joint, at every layer."""
    layers = list(dict.fromkeys(result.layer for result in results))
    rows: list[dict[str, Any]] = []
    for layer, (variant, against) in product(layers, pairs(variants)):
        ours, theirs = ([r for r in results if (r.layer, r.variant) == (layer, name)] for name in (variant, against))
        differences = contrast([r.documents for r in ours], [r.documents for r in theirs], settings)
        for metric in OF_SEEDS:
            differences[metric] = paired(*(pd.Series([r.evaluation[metric] for r in side]) for side in (ours, theirs)))
        rows += [
            dict(zip(COLUMNS, (layer, variant, against, metric, *difference, len(ours)), strict=True))
            for metric, difference in differences.items()
        ]
    return pd.DataFrame(rows, columns=COLUMNS)


def pairs(variants: Mapping[str, VariantSettings]) -> list[tuple[str, str]]:
    """Return which variants to compare: those of full width with the plain one, progressive ones with joint ones."""
    full = [name for name, variant in variants.items() if variant.d_hidden_share == 1]
    plain = plain_of(variants)
    joint = [name for name in full if variants[name].prefixes and variants[name].training == "joint"]
    progressive = [name for name in full if variants[name].training == "progressive"]
    with_plain = [(name, plain) for name in full if plain and name != plain]
    return with_plain + [(name, other) for name in progressive for other in joint]


def contrast(
    ours: Sequence[pd.DataFrame], theirs: Sequence[pd.DataFrame], settings: EvaluateSettings
) -> dict[str, tuple[float, float, float]]:
    """Return ``ours − theirs`` of each metric in ``RATIOS``, with its 2.5 % and 97.5 % bootstrap percentiles.

    One table of sums per document (``documents.csv`` of stage `evaluate`) a seed; all of the same documents. A
    resample draws seeds for either side, and the same documents for both.
    """
    rng = np.random.default_rng(settings.seed)
    documents = len(ours[0])
    present = np.flatnonzero(ours[0]["tokens"].to_numpy() > 0)
    weights = np.zeros((settings.bootstrap + 1, documents))
    weights[0, present] = 1
    weights[1:, present] = rng.multinomial(
        len(present), np.full(len(present), 1 / len(present)), size=settings.bootstrap
    )
    draws = [_draw(rng, len(side), settings.bootstrap) for side in (ours, theirs)]
    result = {}
    for metric, (numerator, denominator) in RATIOS.items():
        means = []
        for side, drawn in zip((ours, theirs), draws, strict=True):
            ratios = np.stack([_sums(t, numerator, weights) / _sums(t, denominator, weights) for t in side])
            means.append(np.einsum("rs,sr->r", drawn, ratios))
        result[metric] = with_percentiles(means[0] - means[1])
    return result


def _draw(rng: np.random.Generator, seeds: int, resamples: int) -> NDArray[np.float64]:
    """Draw shares of the seeds in each resample; the first takes them as they are."""
    counts = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    return np.concatenate([np.full((1, seeds), 1 / seeds), counts / seeds])


def _sums(table: pd.DataFrame, names: tuple[str, ...], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum over documents of a column, less a second one, under each row of ``weights``."""
    values = table[names[0]].to_numpy(dtype=np.float64)
    if len(names) > 1:
        values = values - table[names[1]].to_numpy(dtype=np.float64)
    return np.asarray(weights @ values)
