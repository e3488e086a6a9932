"""A category's main latents: the few that say together whether a word belongs to it (arXiv 2409.14507)."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression

from transcoders.absorption.settings import AbsorptionSettings

L1_PENALTY = 0.01  # as SAEBench's, per word, on latents of root mean square 1 where they are active


def sparse_probes(
    latents: csr_array, true: NDArray[np.bool_], train: NDArray[np.bool_], settings: AbsorptionSettings
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the latents that predict a category, best first, and what probes on the first 1, 2, ... of them predict.

    Candidates are those with the largest positive weights of an L1-regularised probe on all ``latents``
    [words, d_hidden]. Probes are fitted on the words of ``train``; predictions [words, k] are of all words.
    """
    scale = float(np.sqrt(np.mean(latents.data**2)))
    normalised = latents[train] / scale
    lasso = LogisticRegression(
        l1_ratio=1,
        solver="liblinear",
        C=1 / (L1_PENALTY * len(normalised.indptr)),
        class_weight="balanced",
        random_state=settings.seed,
    ).fit(normalised, true[train])
    order = np.argsort(-lasso.coef_[0], kind="stable")[: settings.largest_k]
    chosen = latents[:, order].toarray() / scale
    predictions = [
        LogisticRegression(class_weight="balanced").fit(chosen[train, :k], true[train]).predict(chosen[:, :k])
        for k in range(1, len(order) + 1)
    ]
    return order, np.stack(predictions, 1)


def weighted_f1(
    predictions: NDArray[np.bool_], true: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the F1 of each column of ``predictions`` [words, k] under each row of ``weights`` [resamples, words]."""
    hits = weights @ (predictions & true[:, None])
    return np.asarray(2 * hits / np.maximum(weights @ predictions + (weights @ true)[:, None], 1e-12))


def main_count(f1: NDArray[np.float64], gain: float) -> NDArray[np.int64]:
    """Return, for each row of ``f1`` [resamples, k], the smallest k from which the next F1 rises by at most ``gain``.

    So many main latents a category has; it is split over one fewer than that.
    """
    stops = np.diff(f1, axis=1) <= gain
    stops = np.concatenate([stops, np.ones((len(f1), 1), dtype=bool)], axis=1)
    return stops.argmax(1) + 1
