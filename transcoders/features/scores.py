"""How well a description predicts (arXiv 2410.13928), by questions that have a right answer.

Detection: which windows hold a firing? Fuzzing: are the marked tokens those that it fires on?
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transcoders.features.explain import Description, Explainer
from transcoders.features.settings import DescribeSettings
from transcoders.features.texts import PAD

LEAST = 4
"""Unseen windows with a firing, and without one, below which a score would be noise."""
GOOD = 0.7


class Unseen(NamedTuple):
    """Hold windows of held-out documents [windows, longest], as many that a latent fires in as others."""

    active: NDArray[np.int32]
    silent: NDArray[np.int32]
    fired: NDArray[np.bool_]
    """On which tokens of the active windows the latent fires."""


def detection_score(explainer: Explainer, description: Description, unseen: Unseen) -> float | None:
    """Return the balanced accuracy of what the description predicts (0.5 is chance); None with too few windows.

    Windows come shuffled, so that their order tells nothing.
    """
    if len(unseen.active) < LEAST:
        return None
    windows = np.concatenate([unseen.active, unseen.silent])
    truth = np.arange(len(windows)) < len(unseen.active)
    order = np.random.default_rng(len(windows)).permutation(len(windows))
    return _balanced_accuracy(explainer.detect(description, windows[order]), truth[order])


def fuzzing_score(explainer: Explainer, description: Description, unseen: Unseen) -> float | None:
    """Return the balanced accuracy of saying whether tokens are marked on which the latent fires.

    Each active window comes twice: with the right tokens marked, and with as many others that are drawn at random.
    None with too few windows.
    """
    rng = np.random.default_rng(len(unseen.active))
    others = (unseen.active != PAD) & ~unseen.fired
    usable = unseen.fired.any(1) & others.any(1)
    windows, right = unseen.active[usable], unseen.fired[usable]
    if len(windows) < LEAST:
        return None
    turn = np.where(others[usable], rng.random(right.shape), np.inf).argsort(1).argsort(1)
    wrong = others[usable] & (turn < right.sum(1, keepdims=True))
    order = rng.permutation(2 * len(windows))
    marked = np.concatenate([right, wrong])[order]
    answers = explainer.recognise(description, np.concatenate([windows, windows])[order], marked)
    return _balanced_accuracy(answers, order < len(windows))


def _balanced_accuracy(answers: Sequence[bool], truth: NDArray[np.bool_]) -> float:
    """Return the mean of the shares of right answers where the truth is yes, and where it is no."""
    right = np.asarray(answers) == truth
    return float((right[truth].mean() + right[~truth].mean()) / 2)


def histogram(scores: NDArray[np.float64]) -> pd.DataFrame:
    """Return the scored latents by score, in bins of 0.05; columns score (the bin's centre), latents, share.

    With 20 windows a side scores are multiples of 0.025: the bins' edges lie between these, and the last holds 1.
    """
    counts, edges = np.histogram(scores[~np.isnan(scores)], bins=np.arange(-0.0375, 1.02, 0.05))
    centres = (edges[:-1] + edges[1:]) / 2
    return pd.DataFrame({"score": centres, "latents": counts, "share": counts / max(counts.sum(), 1)})


def summary(
    scores: NDArray[np.float64], settings: DescribeSettings, kind: str = "detection", prefix: str = ""
) -> dict[str, float]:
    """Return the mean score with its 95 % bootstrap interval over latents, share of good ones, how many there are.

    Latents without a score (NaN) are left out; without any, only their number is given. Names begin with ``prefix``
    and the ``kind`` of score.
    """
    known, name = scores[~np.isnan(scores)], prefix + kind
    metrics = {f"{name}_scored": float(len(known))}
    if len(known):
        rng = np.random.default_rng(settings.seed)
        means = [rng.choice(known, len(known)).mean() for _ in range(settings.bootstrap)]
        low, high = np.percentile(means, [2.5, 97.5])
        metrics |= {
            f"{name}_score": float(known.mean()),
            f"{name}_score_low": float(low),
            f"{name}_score_high": float(high),
            f"{name}_above_0.7": float((known > GOOD).mean()),
        }
    return metrics
