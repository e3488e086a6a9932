"""How well dictionaries tell classes: a row for each and each number of latents, beside y and shuffled labels."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from transcoders.evaluation.intervals import with_percentiles
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
    of, shuffled = labels.of, np.random.default_rng(settings.seed).permutation(labels.of)
    parts, dealt = (parts_of(classes, settings.folds, settings.seed) for classes in (of, shuffled))
    weights, everyone = resamples(len(of), settings), np.ones((1, len(of)))
    resampled: dict[tuple[str, int | None], NDArray[np.float64]] = {}
    rows: list[dict[str, Any]] = []
    for name, values, sizes in tqdm(features, desc="probing", unit="dictionary"):
        judged, control = scores(values, of, parts, sizes), scores(values, shuffled, dealt, sizes)
        for k, ours, by_chance in zip(sizes, judged, control, strict=True):
            resampled[name, k] = mean_auc(ours, of, parts, weights)
            figures = list(with_percentiles(resampled[name, k]))
            if name in plain and plain[name] != name:
                figures += with_percentiles(resampled[name, k] - resampled[plain[name], k])
            row = {"name": name, "k": k or values.shape[1], **dict(zip(FIGURES, figures, strict=False))}
            row["shuffled"] = mean_auc(by_chance, shuffled, dealt, everyone)[0]
            rows.append(row | {"classes": len(labels.names), "items": len(of)})
    return pd.DataFrame(rows, columns=COLUMNS)


def resamples(items: int, settings: ProbingSettings) -> NDArray[np.float64]:
    """Return how often each of the items is in each resample [1 + bootstrap, items]; in the first, once."""
    draws = np.random.default_rng(settings.seed).multinomial(items, np.full(items, 1 / items), settings.bootstrap)
    return np.concatenate([np.ones((1, items)), draws])
