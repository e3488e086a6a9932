"""How well dictionaries tell classes: a row for each and each number of latents, beside y and shuffled labels."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from transcoders.evaluation.bootstrap import Statistic, interval
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.probing.probes import Labels, mean_auc, parts_of, scores
from transcoders.probing.settings import ProbingSettings

FIGURES = ("auc", "low", "high", "difference", "difference_low", "difference_high")
COLUMNS = ["name", "k", *FIGURES, "shuffled", "classes", "items"]


def table_of(
    features: Iterator[tuple[str, NDArray[np.float32], list[int | None]]],
    plain: Mapping[str, str],
    labels: Labels,
    settings: ProbingSettings,
) -> pd.DataFrame:
    """Probe ``features`` (name, values [items, features], numbers of them to read) for the classes of the items.

    ``auc`` is the mean over classes, with a 95 % bootstrap interval over items; ``difference`` is to the plain run
    that ``plain`` names for a run, on the same resamples; ``shuffled`` is the AUC of labels that were dealt anew.
    """
    if not labels.names:
        return pd.DataFrame(columns=COLUMNS)
    of, everyone = labels.of, torch.ones(len(labels.of), dtype=torch.bool)
    shuffled = np.random.default_rng(settings.seed).permutation(of)
    parts, dealt = (parts_of(classes, settings.folds, settings.seed) for classes in (of, shuffled))
    resampling = EvaluateSettings(bootstrap=settings.bootstrap, seed=settings.seed)

    def auc(judged: NDArray[np.float64]) -> Statistic:
        return lambda weights: mean_auc(judged, of, parts, weights.numpy())

    statistics: dict[tuple[str, int | None], Statistic] = {}
    rows: list[dict[str, Any]] = []
    for name, values, sizes in tqdm(features, desc="probing", unit="dictionary"):
        judged, control = scores(values, of, parts, sizes), scores(values, shuffled, dealt, sizes)
        for k, ours, by_chance in zip(sizes, judged, control, strict=True):
            statistics[name, k] = auc(ours)
            figures = list(interval(statistics[name, k], everyone, resampling))
            if name in plain and plain[name] != name:
                figures += interval(_less(statistics[name, k], statistics[plain[name], k]), everyone, resampling)
            row = {"name": name, "k": k or values.shape[1], **dict(zip(FIGURES, figures, strict=False))}
            row["shuffled"] = mean_auc(by_chance, shuffled, dealt, np.ones((1, len(of))))[0]
            rows.append(row | {"classes": len(labels.names), "items": len(of)})
    return pd.DataFrame(rows, columns=COLUMNS)


def _less(ours: Statistic, theirs: Statistic) -> Statistic:
    return lambda weights: ours(weights) - theirs(weights)
