"""95 % intervals over documents: tokens of one document are not independent, documents are."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from transcoders.core.errors import UserError
from transcoders.evaluation.settings import EvaluateSettings

Statistic = Callable[[Float[Tensor, "resamples documents"]], NDArray[np.float64]]
"""From document weights (how often each was drawn) to one value per resample."""


def interval(
    statistic: Statistic, present: Bool[Tensor, "documents"], settings: EvaluateSettings
) -> tuple[float, float, float]:
    """Return the statistic on all documents that are present, and its 2.5 % and 97.5 % bootstrap percentiles.

    Raises:
        UserError: too few resamples have a value.
    """
    ids = np.flatnonzero(present.numpy())
    rng = np.random.default_rng(settings.seed)
    draws = rng.multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=settings.bootstrap)
    weights = torch.zeros(settings.bootstrap + 1, len(present), dtype=torch.float64)
    weights[0, ids] = 1.0
    weights[1:, ids] = torch.from_numpy(draws).double()
    values = statistic(weights)
    return with_percentiles(values)


def with_percentiles(values: Float[NDArray[np.float64], "resamples"]) -> tuple[float, float, float]:
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
