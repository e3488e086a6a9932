"""The explainer that needs no network: on what kind of words a latent fires, after which, and among which.

Three directions in the space of the model's own token embeddings stand for a latent: the mean of the tokens that it
fired on, of those before them, and of those around them, each shrunk towards the mean of the text. A window is as
likely to hold a firing as these say of its tokens together (naive Bayes with normal densities).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from transcoders.features.explain import Context, Description, Evidence
from transcoders.features.vocabulary import UNKNOWN, Vocabulary

NAMED = 5
"""Words of each kind that the text names."""
SHRINK = 20.0
"""Tokens by which each mean is shrunk towards that of the text: few firings make no rule."""
BEFORE, AROUND = 0.5, 0.5
"""Weights of the token before a firing and of those around it, which are not independent as naive Bayes has it."""
BELOW = (0.4, 0.995)
"""Least and largest share of usual windows, or tokens, that hold less than what is taken for a firing."""
SLACK = 0.02
"""In balanced accuracy, doubled: thresholds that are so near to the best one are as good."""
LARGEST = 30.0


class Directions(NamedTuple):
    """Hold what a description of ``Statistics`` predicts from."""

    means: NDArray[np.float32]
    """[3, r]: of the tokens that the latent fired on, of those before, and of those around them."""
    window: float
    """Log-odds from which on a window is expected to hold a firing."""
    token: float
    """And a token to be one."""


class Odds(NamedTuple):
    """Hold the log-odds, up to a constant, of a firing on tokens [windows, longest] and in windows [windows]."""

    token: NDArray[np.float32]
    window: NDArray[np.float32]


class Sample(NamedTuple):
    """Hold contexts of a latent: the place of each token in the vocabulary, and whether it fired there."""

    places: NDArray[np.int64]
    fired: NDArray[np.bool_]


class Usual(NamedTuple):
    """Hold in how many windows of the text each word is, and the sum of these numbers."""

    windows: Mapping[str, int]
    total: int


class Statistics:
    """Describe a latent by the words of its firings; predict by words that the model takes for alike."""

    name = "statistics"
    concurrency = 1

    def __init__(self, vocabulary: Vocabulary, usual: Sequence[Sequence[str]], words: Mapping[str, int]) -> None:
        """Compare latents with ``usual``, windows of the text that were drawn without regard to any latent.

        ``words`` says of each word of the text how many windows hold it.
        """
        self._vocabulary, self._usually = vocabulary, Usual(words, sum(words.values()))
        places = vocabulary.find(usual)
        self._usual, self._is_usual = vocabulary.points[places], places != UNKNOWN

    def describe(self, evidence: Evidence) -> Description:
        """Return the words on which the latent fires, their company, and the directions that stand for them."""
        sample = self._sample_of(evidence.sampled)
        window, token = self._thresholds(sample)
        return Description(_text(evidence, self._usually), self.name, Directions(self._means(sample), window, token))

    def detect(self, description: Description, windows: list[list[str]]) -> list[bool]:
        """Say which windows hold more of what the directions point to than usual ones."""
        directions, odds = self._judge(description, windows)
        return (odds.window > directions.window).tolist()

    def recognise(self, description: Description, windows: list[list[str]], marked: list[list[int]]) -> list[bool]:
        """Say in which windows the ``marked`` tokens are more of what the directions point to than usual ones."""
        directions, odds = self._judge(description, windows)
        return [float(row[marks].mean()) > directions.token for row, marks in zip(odds.token, marked, strict=True)]

    def _judge(self, description: Description, windows: list[list[str]]) -> tuple[Directions, Odds]:
        directions, places = description.directions, self._vocabulary.find(windows)
        assert isinstance(directions, Directions), "a description of another explainer"
        return directions, _odds(self._vocabulary.points[places], places != UNKNOWN, directions.means)

    def _sample_of(self, contexts: Sequence[Context]) -> Sample:
        places = self._vocabulary.find([context.tokens for context in contexts])
        fired = np.zeros(places.shape, bool)
        for row, context in zip(fired, contexts, strict=True):
            row[: len(context.values)] = np.array(context.values) > 0
        return Sample(places, fired)

    def _means(self, sample: Sample) -> NDArray[np.float32]:
        """Return the mean points of the tokens of firings, of those before and of those around them, shrunk."""
        places, fired = sample
        before = np.zeros_like(fired)
        before[:, :-1] = fired[:, 1:]
        kinds = (places[fired], places[before & ~fired], places.ravel())
        means = np.zeros((len(kinds), self._vocabulary.points.shape[1]), np.float32)
        for mean, kind, independent in zip(means, kinds, (None, None, len(places)), strict=True):
            points = self._vocabulary.points[kind[kind != UNKNOWN]]
            count = len(points) if independent is None else independent  # a window's tokens together count as one
            mean += points.sum(0) / max(1, len(points)) * count / (count + SHRINK)
        return means

    def _thresholds(self, sample: Sample) -> tuple[float, float]:
        """Return the log-odds that best separate firings from usual text, in windows and on tokens.

        Each half of the sample is judged by the other's means, for a sample is always like its own.
        """
        firing, usual = [], []
        for half in (0, 1):
            others = np.arange(len(sample.places)) % 2 == half
            means = self._means(Sample(*(part[~others] for part in sample)))
            places, fired = (part[others] for part in sample)
            judged = _odds(self._vocabulary.points[places], places != UNKNOWN, means)
            firing.append(judged._replace(token=judged.token[fired]))
            judged = _odds(self._usual, self._is_usual, means)
            usual.append(judged._replace(token=judged.token[self._is_usual]))
        ours, theirs = (Odds(*map(np.concatenate, zip(*halves, strict=True))) for halves in (firing, usual))
        return _border(ours.window, theirs.window), _border(ours.token, theirs.token)


def _border(firing: NDArray[np.float32], usual: NDArray[np.float32]) -> float:
    """Return the middle of the thresholds whose balanced accuracy is about the best."""
    shares = np.linspace(*BELOW, num=40)
    thresholds = np.quantile(usual, shares)
    right = (firing[:, None] > thresholds).mean(0) + shares if len(firing) else shares
    return float(thresholds[right >= right.max() - SLACK].mean())


def _odds(points: NDArray[np.float32], known: NDArray[np.bool_], means: NDArray[np.float32]) -> Odds:
    """Return the log-odds of firings in windows of ``points`` [windows, longest, r], of which some are ``known``.

    A mean makes a token likelier by the ratio of two normal densities of unit covariance, around it and around 0.
    """
    flat = points.reshape(-1, points.shape[-1]) @ means.T  # one product: numpy makes one a window otherwise
    ratio = np.where(known[..., None], flat.reshape(*known.shape, -1) - np.square(means).sum(1) / 2, 0)
    token = ratio[..., 0].copy()
    token[:, 1:] += BEFORE * ratio[:, :-1, 1]
    any_token = np.where(known, np.exp(token.clip(max=LARGEST)), 0).sum(1) / known.sum(1).clip(min=1)
    return Odds(token, np.log(any_token.clip(min=1e-30)) + AROUND * ratio[..., 2].sum(1))


@cache
def word(token: str) -> str:
    """Return what makes tokens the same word: case and spaces around it do not matter."""
    return token.strip().lower() or token


def quoted(text: str) -> str:
    """Return ``text`` in quotation marks, line breaks made visible."""
    return "“" + text.replace("\n", "⏎").replace("\t", "⇥") + "”"


def _text(evidence: Evidence, usual: Usual) -> str:
    """Put into words what the sampled contexts hold more of than the text does, and what the latent promotes."""
    on: Counter[str] = Counter()
    before: Counter[str] = Counter()
    around: Counter[str] = Counter()
    for context in evidence.sampled:
        words = [word(token) for token in context.tokens]
        fired = [value > 0 for value in context.values]
        on.update(name for name, fires in zip(words, fired, strict=True) if fires)
        before.update(
            name for name, fires, next_fires in zip(words, fired, fired[1:], strict=False) if next_fires and not fires
        )
        around.update({name for name, fires in zip(words, fired, strict=True) if not fires})
    total = on.total()
    often = [f"{quoted(name)} ({count / total:.0%})" for name, count in on.most_common(NAMED)]
    parts = ["fires on " + (", ".join(often) or "held-out text alone")]
    for how, counts in (("after", before), ("among", around)):
        names = [quoted(name) for name in distinctive(counts, usual) if name not in on][:NAMED]
        if names:
            parts.append(f"{how} " + ", ".join(names))
    parts.append("promotes " + ", ".join(quoted(token.strip()) for token in evidence.promoted[:NAMED]))
    return "; ".join(parts)


def distinctive(counts: Counter[str], usual: Usual) -> list[str]:
    """Return the words that are counted more than once and more often than usual, those first that tell most."""
    total = counts.total()
    gains = {
        name: count * math.log(count / total * (usual.total + 1) / (usual.windows.get(name, 0) + 1))
        for name, count in counts.items()
        if count > 1
    }
    return sorted((name for name, gain in gains.items() if gain > 0), key=lambda name: (-gains[name], name))
