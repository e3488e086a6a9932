import numpy as np
import pandas as pd
import pytest

from transcoders.evaluation.intervals import paired


def test_paired_differences_have_students_interval():
    mean, low, high = paired(pd.Series([1.0, 2.0, 4.0]), pd.Series([0.5, 1.0, 2.0]))
    differences = np.array([0.5, 1.0, 2.0])
    half = 4.302653 * differences.std(ddof=1) / 3**0.5
    assert (mean, low, high) == pytest.approx(
        (differences.mean(), differences.mean() - half, differences.mean() + half)
    )
    assert np.isnan(paired(pd.Series([1.0]), pd.Series([2.0]))[1])
