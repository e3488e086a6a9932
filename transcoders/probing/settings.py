"""What documents and words are probed for, and with how many latents."""

from pydantic import Field

from transcoders.core.settings import Settings


class ProbingSettings(Settings):
    """Say how topics of documents, and classes of words, are probed for."""

    tokens: int = Field(default=100_000, ge=0)
    """Stored tokens whose documents are probed (all of them, if there are fewer); 0 leaves topics out."""
    k: list[int] = Field(default_factory=lambda: [1, 2, 5], min_length=1)
    """Numbers of latents that a probe may read."""
    folds: int = Field(default=5, gt=1)
    """Parts of the documents, or of the words: each is judged by probes that were fitted to the others."""
    least: int = Field(default=20, ge=10)
    """Documents that a topic needs; topics with fewer are not probed for."""
    bootstrap: int = Field(default=1000, gt=0)
    seed: int = Field(default=0, ge=0)
