"""One variant against another: differences with intervals over seeds and documents."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from transcoders.evaluation.settings import EvaluateSettings

RATIOS = {
    "fvu": (("error",), ("variation",)),
    "delta_ce": (("ce_replaced", "ce_clean"), ("loss_tokens",)),
    "loss_recovered": (("ce_zero", "ce_replaced"), ("ce_zero", "ce_clean")),
}
"""Metrics that are a ratio of sums over documents: numerator and denominator, a second name subtracted."""


def contrast(
    ours: Sequence[pd.DataFrame], theirs: Sequence[pd.DataFrame], settings: EvaluateSettings
) -> dict[str, tuple[float, float, float]]:
    """``ours − theirs`` of each metric in ``RATIOS``, with its 2.5 % and 97.5 % bootstrap percentiles.

    One table of sums per document (as in ``data/documents``) a seed; all of the same documents. A
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
        difference = means[0] - means[1]
        low, high = np.nanpercentile(difference[1:], [2.5, 97.5])
        result[metric] = (float(difference[0]), float(low), float(high))
    return result


def paired(ours: pd.Series, theirs: pd.Series) -> tuple[float, float, float]:
    """Mean difference of two variants' values, seed by seed, and its 95 % interval (Student's t)."""
    differences = ours.to_numpy(dtype=np.float64) - theirs.to_numpy(dtype=np.float64)
    mean = float(differences.mean())
    if len(differences) == 1:
        return mean, float("nan"), float("nan")
    low, high = stats.t.interval(0.95, len(differences) - 1, mean, stats.sem(differences))
    return mean, float(low), float(high)


def _draw(rng: np.random.Generator, seeds: int, resamples: int) -> NDArray[np.float64]:
    """Shares of the seeds in each resample; the first takes them as they are."""
    counts = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    return np.concatenate([np.full((1, seeds), 1 / seeds), counts / seeds])


def _sums(table: pd.DataFrame, names: tuple[str, ...], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    values = table[names[0]].to_numpy(dtype=np.float64)
    if len(names) > 1:
        values = values - table[names[1]].to_numpy(dtype=np.float64)
    return np.asarray(weights @ values)
