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

    A resample without a value counts for nothing: it drew none of what a mean is over, or a ratio's denominator is 0.

    Raises:
        UserError: fewer than half of the resamples have a value, so that no interval would mean anything.
    """
    ids = np.flatnonzero(present.numpy())
    rng = np.random.default_rng(settings.seed)
    draws = rng.multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=settings.bootstrap)
    weights = torch.zeros(settings.bootstrap + 1, len(present), dtype=torch.float64)
    weights[0, ids] = 1.0
    weights[1:, ids] = torch.from_numpy(draws).double()
    values = statistic(weights)
    resampled = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or 2 * len(resampled) < settings.bootstrap:
        raise UserError(
            f"evaluate.bootstrap: a metric has a value in {len(resampled)} of {settings.bootstrap} resamples of "
            f"{len(ids)} documents or words, too few for an interval; evaluate on more"
        )
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(values[0]), float(low), float(high)
