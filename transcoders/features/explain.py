"""Explainers: what describes a latent from its contexts, and is asked what the description predicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Contexts(NamedTuple):
    """Hold windows of consecutive tokens, each of one document, and a latent's activations there [windows, longest]."""

    tokens: NDArray[np.int32]
    """Ids; PAD fills up what is shorter."""
    values: NDArray[np.float32]

    def first(self, count: int) -> "Contexts":
        """Return the first ``count`` windows."""
        return Contexts(self.tokens[:count], self.values[:count])


class Evidence(NamedTuple):
    """Hold all that an explainer learns of a latent."""

    latent: int
    density: float
    """Share of tokens on which it fires."""
    top: Contexts
    """Those with the highest activations, best first."""
    sampled: Contexts
    """Around firings drawn at random."""
    promoted: list[str]


@dataclass(frozen=True)
class Description:
    """Say in words what a latent is about; with this an explainer must tell where the latent fires."""

    text: str
    explainer: str
    directions: Any = None
    """What ``statistics`` predicts from."""


class Explainer(Protocol):
    """Describe latents, and predict from a description alone."""

    name: str
    concurrency: int
    """Latents to work on at a time."""

    def describe(self, evidence: Evidence) -> Description:
        """Put into words when the latent fires."""
        ...

    def detect(self, description: Description, windows: NDArray[np.int32]) -> Sequence[bool]:
        """Say in which of ``windows`` [windows, longest] of token ids the described latent fires."""
        ...

    def recognise(
        self, description: Description, windows: NDArray[np.int32], marked: NDArray[np.bool_]
    ) -> Sequence[bool]:
        """Say in which ``windows`` the ``marked`` tokens [windows, longest] are those that the latent fires on."""
        ...


class NoAnswerError(Exception):
    """Tell that an explainer has nothing usable to say about this latent."""
