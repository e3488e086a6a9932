"""Explainers: what describes a latent from its contexts, and is asked what the description predicts."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class Context(NamedTuple):
    """Hold consecutive tokens of one document and a latent's activations there (none if it is unseen)."""

    tokens: list[str]
    values: list[float]


class Evidence(NamedTuple):
    """Hold all that an explainer learns of a latent."""

    latent: int
    density: float
    """Share of tokens on which it fires."""
    top: list[Context]
    sampled: list[Context]
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

    def detect(self, description: Description, windows: list[list[str]]) -> list[bool]:
        """Say in which of ``windows`` the described latent fires."""
        ...

    def recognise(self, description: Description, windows: list[list[str]], marked: list[list[int]]) -> list[bool]:
        """Say in which of ``windows`` the tokens at ``marked`` are those on which the described latent fires."""
        ...


class NoAnswerError(Exception):
    """Tell that an explainer has nothing usable to say about this latent."""
