"""95 % intervals of numbers that are there already: of pairs, and of resamples. Tables are compared without torch."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from transcoders.core.errors import UserError

EQUAL_L0 = 0.05
"""Share by which the L0 of dictionaries that are compared may differ."""


def verdict(low: float, high: float) -> str:
    """Judge the interval of an effect on something of which less is better."""
    if high < 0:
        return "supported"
    return "refuted" if low > 0 else "undecided"


def unequal_l0(l0: Sequence[float]) -> str:
    """Say that dictionaries of these L0 are not equally sparse; empty where they are."""
    least, most = min(l0), max(l0)
    return f"L0 differs: {least:.3g} to {most:.3g}" if most > (1 + EQUAL_L0) * least else ""


def paired(ours: pd.Series, theirs: pd.Series) -> tuple[float, float, float]:
    """Return the mean difference of two variants' values, pair by pair, and its 95 % interval (Student's t).

    With one pair the interval is NaN.
    """
    differences = ours.to_numpy(dtype=np.float64) - theirs.to_numpy(dtype=np.float64)
    mean = float(differences.mean())
    if len(differences) == 1:
        return mean, float("nan"), float("nan")
    half = stdtrit(len(differences) - 1, 0.975) * differences.std(ddof=1) / math.sqrt(len(differences))
    return mean, mean - float(half), mean + float(half)


def with_percentiles(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the first of ``values``, and the 2.5 % and 97.5 % percentiles of the others, the resamples'.

    A resample without a value counts for nothing: it drew none of what a mean is over, or a ratio's denominator is 0.

    Raises:
        UserError: fewer than a tenth of the resamples have a value, so that no interval would mean anything.
    """
    resampled = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or 10 * len(resampled) < len(values) - 1:
        raise UserError(
            f"evaluate: a metric has a value in {len(resampled)} of {len(values) - 1} resamples of documents or words, "
            "too few for an interval; evaluate on more (evaluate.tokens, evaluate.loss_tokens, absorption.words)"
        )
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(values[0]), float(low), float(high)
