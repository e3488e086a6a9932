"""Scoring descriptions by detection: do they tell windows with a firing from others? (arXiv 2410.13928)"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transcoders.features.explain import Description, Explainer
from transcoders.features.settings import DescribeSettings

LEAST = 4
"""Unseen windows with a firing, and without one, below which a score would be noise."""
GOOD = 0.7


class Unseen(NamedTuple):
    """Hold windows of held-out documents, as many in which a latent fires as in which it is silent."""

    active: list[list[str]]
    silent: list[list[str]]


def detection_score(explainer: Explainer, description: Description, unseen: Unseen) -> float | None:
    """Return the balanced accuracy of what the description predicts (0.5 is chance); None with too few windows.

    Windows come shuffled, so that their order tells nothing.
    """
    if len(unseen.active) < LEAST:
        return None
    windows = [(tokens, True) for tokens in unseen.active] + [(tokens, False) for tokens in unseen.silent]
    order = np.random.default_rng(len(windows)).permutation(len(windows))
    answers = explainer.detect(description, [windows[i][0] for i in order])
    right = {True: 0, False: 0}
    for i, answer in zip(order, answers, strict=True):
        right[windows[i][1]] += answer == windows[i][1]
    return (right[True] / len(unseen.active) + right[False] / len(unseen.silent)) / 2


def histogram(scores: NDArray[np.float64]) -> pd.DataFrame:
    """Return the scored latents by score, in bins of 0.05; columns score (the bin's centre), latents, share.

    With 20 windows a side scores are multiples of 0.025: the bins' edges lie between these.
    """
    counts, edges = np.histogram(scores[~np.isnan(scores)], bins=np.arange(-0.0125, 1.05, 0.05))
    centres = (edges[:-1] + edges[1:]) / 2
    return pd.DataFrame({"score": centres, "latents": counts, "share": counts / max(counts.sum(), 1)})


def summary(scores: NDArray[np.float64], settings: DescribeSettings, prefix: str = "") -> dict[str, float]:
    """Return the mean score with its 95 % bootstrap interval over latents, share of good ones, how many there are.

    Latents without a score (NaN) are left out; without any, only their number is given.
    """
    known = scores[~np.isnan(scores)]
    metrics = {f"{prefix}scored": float(len(known))}
    if len(known):
        rng = np.random.default_rng(settings.seed)
        means = [rng.choice(known, len(known)).mean() for _ in range(settings.bootstrap)]
        low, high = np.percentile(means, [2.5, 97.5])
        metrics |= {
            f"{prefix}detection_score": float(known.mean()),
            f"{prefix}detection_score_low": float(low),
            f"{prefix}detection_score_high": float(high),
            f"{prefix}detection_above_0.7": float((known > GOOD).mean()),
        }
    return metrics
