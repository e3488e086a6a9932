"""Differences between two variants that were trained, or measured, in pairs."""

import numpy as np
import pandas as pd
from scipy import stats


def paired(ours: pd.Series, theirs: pd.Series) -> tuple[float, float, float]:
    """Return the mean difference of two variants' values, pair by pair, and its 95 % interval (Student's t).

    With one pair the interval is NaN.
    """
    differences = ours.to_numpy(dtype=np.float64) - theirs.to_numpy(dtype=np.float64)
    mean = float(differences.mean())
    if len(differences) == 1:
        return mean, float("nan"), float("nan")
    low, high = stats.t.interval(0.95, len(differences) - 1, mean, stats.sem(differences))
    return mean, float(low), float(high)
