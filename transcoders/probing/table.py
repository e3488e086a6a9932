"""How well dictionaries tell topics: a row for each and each number of latents, beside y and shuffled labels."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from transcoders.evaluation.intervals import with_percentiles
from transcoders.probing.probes import Labels, mean_auc, scores
from transcoders.probing.settings import ProbingSettings

COLUMNS = ["name", "k", "auc", "low", "high", "difference", "difference_low", "difference_high", "shuffled"]
COLUMNS += ["topics", "documents"]


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
    rng = np.random.default_rng(settings.seed)
    count = len(labels.documents)
    weights = np.ones((settings.bootstrap + 1, count))
    weights[1:] = rng.multinomial(count, np.full(count, 1 / count), size=settings.bootstrap)
    shuffled = rng.permutation(labels.of)
    resampled: dict[tuple[str, int | None], NDArray[np.float64]] = {}
    rows: list[dict[str, Any]] = []
    for name, values, sizes in tqdm(features, desc="probing", unit="dictionary"):
        judged, control = (scores(values, of, sizes, settings.folds, settings.seed) for of in (labels.of, shuffled))
        for k, ours, by_chance in zip(sizes, judged, control, strict=True):
            resampled[name, k] = mean_auc(ours, labels.of, weights)
            auc, low, high = with_percentiles(resampled[name, k])
            row = {"name": name, "k": k or values.shape[1], "auc": auc, "low": low, "high": high}
            if name in plain and plain[name] != name:
                difference = with_percentiles(resampled[name, k] - resampled[plain[name], k])
                row |= dict(zip(COLUMNS[5:8], difference, strict=True))
            row |= {"shuffled": mean_auc(by_chance, shuffled, weights[:1])[0]}
            rows.append(row | {"topics": len(labels.names), "documents": count})
    return pd.DataFrame(rows, columns=COLUMNS)
