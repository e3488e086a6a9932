"""95 % intervals over documents: tokens of one document are not independent, documents are."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from transcoders.evaluation.intervals import with_percentiles
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
