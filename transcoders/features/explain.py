"""Explainers: what describes a latent from its contexts, and is asked what the description predicts."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


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
    triggers: dict[str, float] = field(default_factory=dict)
    """Word -> firings to expect in a window that holds it (``statistics`` only)."""
    companions: dict[str, float] = field(default_factory=dict)
    """Word -> log of how much more windows with a firing hold it than others (``statistics`` only)."""
    elsewhere: float = 0.0
    """Firings to expect in a window on words that ``triggers`` leaves out."""
    expected: float = 0.0
    """Firings to expect in any window."""


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


class NoAnswerError(Exception):
    """Tell that an explainer has nothing usable to say about this latent."""
