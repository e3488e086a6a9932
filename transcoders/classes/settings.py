"""Which words and classes are judged, and when they may be."""

from pydantic import Field

from transcoders.core.settings import Settings


class ClassSettings(Settings):
    """Say on which tokens word classes are judged, and what a class and its probe need for it."""

    tokens: int = Field(default=200_000, ge=0)
    """Stored tokens to judge on (all, if there are fewer); 0 leaves word classes out."""
    occurrences: int = Field(default=5, gt=0)
    """Tokens that a word needs."""
    members: int = Field(default=8, ge=4)
    """Such words that a class needs."""
    halves: int = Field(default=10, gt=0)
    """Random halves of a class's words: a probe and a parent latent come from one half, and are judged on the other."""
    others: int = Field(default=20_000, gt=0)
    """Tokens of no class, or of another, that probes tell members from."""
    least_auroc: float = Field(default=0.85, gt=0.5, lt=1)
    """Of the probe on y, on words that it did not see: classes that y tells worse are left out."""
    chance_auroc: float = Field(default=0.7, gt=0.5, lt=1)
    """What random words of the same frequencies may reach at most: rare ones are mostly nouns, which y tells from the
    function words that most other tokens are."""
    bootstrap: int = Field(default=1000, gt=0)
    seed: int = Field(default=0, ge=0)
