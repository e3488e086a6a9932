"""The explainer that needs no network: on which words a latent fires, and among which others."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from transcoders.features.explain import Context, Description, Evidence
from transcoders.features.settings import DescribeSettings

SHOWN = 5
"""Words of each kind that the text names."""
DOUBT = 0.5
"""Firings by which a word's count is shrunk: one seen once is no rule."""
SMOOTHING = 4.0
"""Windows of background that are added to a latent's own."""
COMPANION_WEIGHT = 0.6
"""Of the companions' evidence: they are not independent of each other."""


def word(token: str) -> str:
    """Return what tokens that are the same word have in common: case and spaces around it do not matter."""
    return token.strip().lower() or token


class Statistics:
    """Describe by counting; predict a firing where the words that it listed make one likely."""

    name = "statistics"
    concurrency = 1

    def __init__(self, windows: int, window: int, words: Mapping[str, int], settings: DescribeSettings) -> None:
        """Take ``words``: of ``windows`` windows of ``window`` tokens, how many hold each word."""
        self._windows, self._window, self._words, self._settings = windows, window, words, settings

    def describe(self, evidence: Evidence) -> Description:
        """List words on which the latent fires, weighed by how rarely they occur without, and their company."""
        fired = Counter(
            word(token)
            for context in evidence.sampled
            for token, value in zip(context.tokens, context.values, strict=True)
            if value > 0
        )
        total = fired.total()
        expected = evidence.density * self._window
        listed = {}
        for name, count in fired.most_common(self._settings.triggers):
            share = count / total * count / (count + DOUBT)
            listed[name] = share * expected * self._windows / (self._words.get(name, 0) + 1)
        covered = sum(fired[name] / total * fired[name] / (fired[name] + DOUBT) for name in listed)
        companions = self._companions(evidence.sampled, set(listed))
        return Description(
            text=self._text(fired, companions, evidence),
            explainer=self.name,
            triggers={name: min(firings, 1.0) for name, firings in listed.items()},
            companions=companions,
            elsewhere=expected * (1 - covered),
            expected=expected,
        )

    def detect(self, description: Description, windows: list[list[str]]) -> list[bool]:
        """Say whether the listed words make a firing likelier than it is in any window."""
        return [self._evidence(description, {word(token) for token in tokens}) > 0 for tokens in windows]

    @staticmethod
    def _evidence(description: Description, present: set[str]) -> float:
        """Return the log of (firings to expect in this window / in any), with the companions' say."""
        firings = description.elsewhere + _total(description.triggers, present)
        return math.log(max(firings, 1e-9) / description.expected) + COMPANION_WEIGHT * _total(
            description.companions, present
        )

    def _companions(self, contexts: list[Context], triggers: set[str]) -> dict[str, float]:
        """Return the words that tell most about whether a window holds a firing (largest G statistic)."""
        n = len(contexts)
        held = Counter(name for context in contexts for name in {word(token) for token in context.tokens})
        candidates = []
        for name, count in held.items():
            usual = (self._words.get(name, 0) + 0.5) / (self._windows + 1)
            share = (count + SMOOTHING * usual) / (n + SMOOTHING)
            if name not in triggers and count > 1 and share > usual:
                log_ratio = math.log(share / usual)
                gain = share * log_ratio + (1 - share) * math.log((1 - share) / (1 - usual)) if share < 1 else log_ratio
                candidates.append((-gain, name, log_ratio))
        return {name: log_ratio for _, name, log_ratio in sorted(candidates)[: self._settings.companions]}

    @staticmethod
    def _text(fired: Counter[str], companions: Iterable[str], evidence: Evidence) -> str:
        total = fired.total()
        often = [f"{quoted(name)} ({count / total:.0%})" for name, count in fired.most_common(SHOWN)]
        near = [quoted(name) for name in list(companions)[:SHOWN]]
        parts = ["fires on " + (", ".join(often) or "held-out text alone")]
        if near:
            parts.append("near " + ", ".join(near))
        parts.append("promotes " + ", ".join(quoted(token.strip()) for token in evidence.promoted[:SHOWN]))
        return "; ".join(parts)


def quoted(text: str) -> str:
    """Return ``text`` in quotation marks, line breaks made visible."""
    return "“" + text.replace("\n", "⏎").replace("\t", "⇥") + "”"


def _total(weights: Mapping[str, float], present: set[str]) -> float:
    return sum(weight for name, weight in weights.items() if name in present)
