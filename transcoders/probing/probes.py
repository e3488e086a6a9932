"""Probes that read a few features of each item (a document, a word), judged on items that they were not fitted to.

As in Gurnee et al. (arXiv 2305.01610) and SAEBench: the k features whose means differ most between a class and the
rest, and a logistic regression on them; one class against the others.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

STRENGTH = 1.0
"""Inverse of the weight of the L2 penalty on a probe of standardised features."""
SMALLEST = 1e-12
"""Standard deviation that features which do not vary are divided by."""


class Labels(NamedTuple):
    """Hold the items that are probed, and the class of each."""

    items: NDArray[np.int64]
    """Numbers of documents, or of words."""
    of: NDArray[np.int64]
    """Number of the class among ``names``."""
    names: list[str]


NOTHING = Labels(np.zeros(0, np.int64), np.zeros(0, np.int64), [])


def labels_of_topics(topics: Iterable[str], tokens: NDArray[np.int64], least: int) -> Labels:
    """Return the documents with ``tokens`` and a topic that ``least`` of them have; fewer than two topics are none."""
    known = np.array([str(topic) for topic in topics])
    usable = (tokens > 0) & (known != "")
    names, counts = np.unique(known[usable], return_counts=True)
    names = names[counts >= least]
    if len(names) < 2:
        return NOTHING
    documents = np.flatnonzero(usable & np.isin(known, names))
    return Labels(documents, np.searchsorted(names, known[documents]), names.tolist())


def labels_of_words(classes: Mapping[str, NDArray[np.int64]], least: int) -> Labels:
    """Return the words, none of them in two ``classes``, of those that have ``least``; fewer than two are none."""
    usable = {name: words for name, words in classes.items() if len(words) >= least}
    if len(usable) < 2:
        return NOTHING
    of = np.repeat(np.arange(len(usable)), [len(words) for words in usable.values()])
    return Labels(np.concatenate([*usable.values()]), of, [*usable])


def parts_of(of: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Deal items of the classes ``of`` into ``folds`` parts, each with its share of every class."""
    parts = np.zeros(len(of), np.int64)
    for number, (_, unseen) in enumerate(StratifiedKFold(folds, shuffle=True, random_state=seed).split(of, of)):
        parts[unseen] = number
    return parts


def scores(
    features: NDArray[np.float32], of: NDArray[np.int64], parts: NDArray[np.int64], sizes: Sequence[int | None]
) -> list[NDArray[np.float64]]:
    """Return how much probes take each item for each class [classes, items], for each number of features.

    None stands for all features. The items of a part are judged by probes that did not see them.
    """
    classes = np.arange(of.max() + 1)
    result = [np.zeros((len(classes), len(of))) for _ in sizes]
    for part in range(parts.max() + 1):
        seen, unseen = np.flatnonzero(parts != part), np.flatnonzero(parts == part)
        values = features[seen]
        members = np.equal(classes[:, None], of[seen]).astype(np.float32)
        sums, counts = members @ values, members.sum(1, keepdims=True)
        differences = np.abs(sums / counts - (values.sum(0) - sums) / (len(seen) - counts))
        for number, difference in enumerate(differences):
            order = np.argsort(-difference, kind="stable")
            for judged, k in zip(result, sizes, strict=True):
                chosen = features[:, order[:k]]
                mean, spread = chosen[seen].mean(0), chosen[seen].std(0).clip(min=SMALLEST)
                probe = LogisticRegression(C=STRENGTH, max_iter=1000)
                probe.fit((chosen[seen] - mean) / spread, of[seen] == number)
                judged[number, unseen] = probe.decision_function((chosen[unseen] - mean) / spread)
    return result


def mean_auc(
    judged: NDArray[np.float64], of: NDArray[np.int64], parts: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the mean over classes of the area under the ROC curve, for each row of ``weights`` of the items.

    That is how often a member has a higher score than another item of its part, ties counting half. Scores of different
    parts do not compare: a probe's intercept is the lower, the more members of its class are among the unseen items.
    """
    total = np.zeros(len(weights))
    for number, row in enumerate(judged):
        right, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        for part in range(parts.max() + 1):
            here = np.flatnonzero(parts == part)
            order = here[np.argsort(row[here], kind="stable")]
            ties = np.flatnonzero(np.diff(row[order], prepend=-np.inf))
            member = of[order] == number
            ours, others = (np.add.reduceat(weights[:, order] * kind, ties, axis=1) for kind in (member, ~member))
            right += (ours * (others.cumsum(1) - others / 2)).sum(1)
            pairs += ours.sum(1) * others.sum(1)
        with np.errstate(invalid="ignore"):  # a resample that has drawn no member of a class has no value
            total += right / pairs
    return total / len(judged)
