"""The explainer that needs no network: on what kind of words a latent fires, after which, and among which.

Three directions in the space of the model's own token embeddings stand for a latent: the mean of the tokens that it
fired on, of those before them, and of those around them, each shrunk towards the mean of the text. A window is as
likely to hold a firing as these say of its tokens together (naive Bayes with normal densities).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from transcoders.features.explain import Description, Evidence
from transcoders.features.texts import PAD
from transcoders.features.vocabulary import Vocabulary

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
NOTHING = "held-out text alone"


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
    """Hold windows of a latent: the place of each token in the vocabulary, whether it is one, and fires."""

    places: NDArray[np.int64]
    inside: NDArray[np.bool_]
    fired: NDArray[np.bool_]

    @property
    def before(self) -> NDArray[np.bool_]:
        """Return which tokens come just before a firing, and are none themselves."""
        before = np.zeros_like(self.fired)
        before[:, :-1] = self.fired[:, 1:]
        return before & self.inside & ~self.fired


class Statistics:
    """Describe a latent by the words of its firings; predict by words that the model takes for alike."""

    name = "statistics"
    concurrency = 1

    def __init__(self, vocabulary: Vocabulary, usual: NDArray[np.int32]) -> None:
        """Compare latents with ``usual``, windows of the text that were drawn without regard to any latent."""
        self._vocabulary = vocabulary
        self._usual, self._is_usual = vocabulary.points[vocabulary.places(usual)], usual != PAD

    def describe(self, evidence: Evidence) -> Description:
        """Return the words on which the latent fires, their company, and the directions that stand for them."""
        tokens, values = evidence.sampled
        sample = Sample(self._vocabulary.places(tokens), tokens != PAD, values > 0)
        window, token = self._thresholds(sample)
        text = f"{self._words(sample)}; promotes " + ", ".join(
            quoted(name.strip()) for name in evidence.promoted[:NAMED]
        )
        return Description(text, self.name, Directions(self._means(sample), window, token))

    def detect(self, description: Description, windows: NDArray[np.int32]) -> list[bool]:
        """Say which windows hold more of what the directions point to than usual ones."""
        directions, odds = self._judge(description, windows)
        return (odds.window > directions.window).tolist()

    def recognise(self, description: Description, windows: NDArray[np.int32], marked: NDArray[np.bool_]) -> list[bool]:
        """Say in which windows the ``marked`` tokens are more of what the directions point to than usual ones."""
        directions, odds = self._judge(description, windows)
        return ((odds.token * marked).sum(1) / marked.sum(1) > directions.token).tolist()

    def _judge(self, description: Description, windows: NDArray[np.int32]) -> tuple[Directions, Odds]:
        directions = description.directions
        assert isinstance(directions, Directions), "a description of another explainer"
        points = self._vocabulary.points[self._vocabulary.places(windows)]
        return directions, _odds(points, windows != PAD, directions.means)

    def _means(self, sample: Sample) -> NDArray[np.float32]:
        """Return the mean points of the tokens of firings, of those before and of those around them, shrunk."""
        kinds = (sample.fired, sample.before, sample.inside)
        means = np.zeros((len(kinds), self._vocabulary.points.shape[1]), np.float32)
        for mean, kind, independent in zip(means, kinds, (None, None, len(sample.places)), strict=True):
            points = self._vocabulary.points[sample.places[kind]]
            count = len(points) if independent is None else independent  # a window's tokens together count as one
            mean += points.sum(0) / max(1, len(points)) * count / (count + SHRINK)
        return means

    def _thresholds(self, sample: Sample) -> tuple[float, float]:
        """Return the log-odds that best separate firings from usual text, in windows and on tokens.

        Each half of the sample is judged by the other's means, for a sample is always like its own.
        """
        firing, usual = [], []
        halves = [Sample(sample.places[i::2], sample.inside[i::2], sample.fired[i::2]) for i in (0, 1)]
        for (places, inside, fired), other in zip(halves, reversed(halves), strict=True):
            means = self._means(other)
            judged = _odds(self._vocabulary.points[places], inside, means)
            firing.append(judged._replace(token=judged.token[fired]))
            judged = _odds(self._usual, self._is_usual, means)
            usual.append(judged._replace(token=judged.token[self._is_usual]))
        ours, theirs = (Odds(*map(np.concatenate, zip(*parts, strict=True))) for parts in (firing, usual))
        return _border(ours.window, theirs.window), _border(ours.token, theirs.token)

    def _words(self, sample: Sample) -> str:
        """Put into words what the sampled windows hold more of than the text does."""
        names, word = self._vocabulary.names, self._vocabulary.word[sample.places]
        fired, counts = np.unique(word[sample.fired], return_counts=True)
        often = np.argsort(-counts, kind="stable")[:NAMED]
        shares = [f"{quoted(names[fired[i]])} ({counts[i] / counts.sum():.0%})" for i in often]
        text = "fires on " + (", ".join(shares) or NOTHING)
        row, column = np.nonzero(sample.inside & ~sample.fired)
        around = np.unique(row * len(names) + word[row, column]) % len(names)  # a word counts once a window
        for how, words in (("after", word[sample.before]), ("among", around)):
            others = distinctive(words, self._vocabulary.windows)
            others = others[~np.isin(others, fired)][:NAMED]
            if len(others):
                text += f"; {how} " + ", ".join(quoted(names[i]) for i in others)
        return text


def _border(firing: NDArray[np.float32], usual: NDArray[np.float32]) -> float:
    """Return the middle of the thresholds whose balanced accuracy is about the best; even odds without usual text."""
    if not len(usual):
        return 0.0
    shares = np.linspace(*BELOW, num=40)
    thresholds = np.quantile(usual, shares)
    right = (firing[:, None] > thresholds).mean(0) + shares if len(firing) else shares
    return float(thresholds[right >= right.max() - SLACK].mean())


def _odds(points: NDArray[np.float32], known: NDArray[np.bool_], means: NDArray[np.float32]) -> Odds:
    """Return the log-odds of firings in windows of ``points`` [windows, longest, r], of which some are ``known``.

    A mean makes a token likelier by the ratio of two normal densities of unit covariance, around it and around 0.
    """
    flat = points.reshape(-1, points.shape[-1]) @ means.T  # one product: numpy makes one a window otherwise
    ratio = np.where(known[..., None], flat.reshape(*known.shape, len(means)) - np.square(means).sum(1) / 2, 0)
    token = ratio[..., 0].copy()
    token[:, 1:] += BEFORE * ratio[:, :-1, 1]
    any_token = np.where(known, np.exp(token.clip(max=LARGEST)), 0).sum(1) / known.sum(1).clip(min=1)
    return Odds(token, np.log(any_token.clip(min=1e-30)) + AROUND * ratio[..., 2].sum(1))


def quoted(text: str) -> str:
    """Return ``text`` in quotation marks, line breaks made visible."""
    return "“" + text.replace("\n", "⏎").replace("\t", "⇥") + "”"


def distinctive(words: NDArray[np.int64], windows: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return those of ``words`` that occur more than once and more often than usual, those first that tell most.

    They are compared with the number of ``windows`` [vocabulary] of the text that hold each.
    """
    kinds, counts = np.unique(words, return_counts=True)
    gain = counts * np.log(counts / len(words) / (windows[kinds] + 1) * (windows.sum() + 1))
    order = np.argsort(-gain, kind="stable")
    return kinds[order][((gain > 0) & (counts > 1))[order]]
