"""How well dictionaries tell topics: a row for each and each number of latents, beside y and shuffled labels."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from transcoders.evaluation.bootstrap import Statistic, interval
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.probing.probes import Labels, mean_auc, scores
from transcoders.probing.settings import ProbingSettings

FIGURES = ("auc", "low", "high", "difference", "difference_low", "difference_high")
COLUMNS = ["name", "k", *FIGURES, "shuffled", "topics", "documents"]


def table_of(
    features: Iterator[tuple[str, NDArray[np.float32], list[int | None]]],
    plain: Mapping[str, str],
    labels: Labels,
    settings: ProbingSettings,
) -> pd.DataFrame:
    """Probe ``features`` (name, values [documents, features], numbers of them to read) for the topics of documents.

    ``auc`` is the mean over topics, with a 95 % bootstrap interval over documents; ``difference`` is to the plain run
    that ``plain`` names for a run, on the same resamples; ``shuffled`` is the AUC of labels that were dealt anew.
    """
    if not labels.names:
        return pd.DataFrame(columns=COLUMNS)
    of, everyone = labels.of, torch.ones(len(labels.of), dtype=torch.bool)
    shuffled = np.random.default_rng(settings.seed).permutation(of)
    resampling = EvaluateSettings(bootstrap=settings.bootstrap, seed=settings.seed)
    kept: dict[tuple[str, int | None], NDArray[np.float64]] = {}
    rows: list[dict[str, Any]] = []
    for name, values, sizes in tqdm(features, desc="probing", unit="dictionary"):
        judged, control = (scores(values, classes, sizes, settings.folds, settings.seed) for classes in (of, shuffled))
        for k, ours, by_chance in zip(sizes, judged, control, strict=True):
            kept[name, k] = ours
            figures = list(interval(_auc(of, ours), everyone, resampling))
            if name in plain and plain[name] != name:
                figures += interval(_auc(of, ours, kept[plain[name], k]), everyone, resampling)
            row = {"name": name, "k": k or values.shape[1], **dict(zip(FIGURES, figures, strict=False))}
            row["shuffled"] = mean_auc(by_chance, shuffled, np.ones((1, len(of))))[0]
            rows.append(row | {"topics": len(labels.names), "documents": len(of)})
    return pd.DataFrame(rows, columns=COLUMNS)


def _auc(of: NDArray[np.int64], ours: NDArray[np.float64], theirs: NDArray[np.float64] | None = None) -> Statistic:
    """Return the AUC of ``ours``, less that of ``theirs``, as a function of the weights of documents."""

    def statistic(weights: Tensor) -> NDArray[np.float64]:
        auc = mean_auc(ours, of, weights.numpy())
        return auc if theirs is None else auc - mean_auc(theirs, of, weights.numpy())

    return statistic
