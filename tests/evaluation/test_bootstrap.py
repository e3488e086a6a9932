"""Intervals of metrics that some resamples have no value of."""

import numpy as np
import pytest

from transcoders.core.errors import UserError
from transcoders.evaluation.intervals import with_percentiles


@pytest.mark.parametrize("nothing", [np.nan, np.inf, -np.inf])
def test_a_resample_without_a_value_counts_for_nothing(nothing: float) -> None:
    resampled = np.linspace(0, 1, 401)
    with_gaps = np.concatenate([[0.5], resampled, np.full(100, nothing)])
    assert with_percentiles(with_gaps) == pytest.approx((0.5, 0.025, 0.975))


@pytest.mark.parametrize(
    "values", [np.array([np.nan, 1.0, 2.0]), np.array([1.0, 2.0, *[np.nan] * 10]), np.array([1.0, np.inf])]
)
def test_a_metric_with_hardly_a_value_is_refused_in_one_line(values: np.ndarray) -> None:
    with pytest.raises(UserError, match="too few for an interval; evaluate on more") as error:
        with_percentiles(values)
    assert "\n" not in str(error.value)
