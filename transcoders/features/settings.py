"""How much text the features are read from, and who describes them."""

from typing import Literal, Self

from pydantic import Field, model_validator

from transcoders.core.places import refuse_secrets
from transcoders.core.settings import Settings


class OpenAISettings(Settings):
    """Say how to ask an OpenAI-compatible server; the key, if it wants one, is OPENAI_API_KEY in the environment."""

    url: str | None = None
    """The server's address, which usually ends in /v1."""
    model: str | None = None
    """The model's name on the server."""
    latents: int = Field(default=200, gt=0)
    """Latents to describe, evenly spread over the living ones; the others keep their statistics."""
    concurrency: int = Field(default=8, gt=0)
    """Requests at a time."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds to wait for an answer."""
    retries: int = Field(default=5, ge=0)
    """After a timeout, status 429 or 5xx, or an answer that cannot be read; waits double from 1 s."""
    max_usd: float = Field(default=1.0, gt=0)
    """The stage stops before it spends more; answers are kept, so that a rerun asks only what is left."""
    usd_per_million_input: float = Field(default=0.5, ge=0)
    usd_per_million_output: float = Field(default=2.0, ge=0)

    @model_validator(mode="after")
    def _url_holds_no_secret(self) -> Self:
        if self.url is not None:
            refuse_secrets("url", self.url)
        return self


class DescribeSettings(Settings):
    """Say who describes the latents."""

    explainer: Literal["statistics", "openai"] = "statistics"
    bootstrap: int = Field(default=1000, gt=0)
    """Resamples of the latents for the 95 % interval of the mean score."""
    seed: int = Field(default=0, ge=0)
    openai: OpenAISettings = Field(default_factory=OpenAISettings)


class FeatureSettings(Settings):
    """Say what the pass over the store keeps of every latent."""

    tokens: int = Field(default=200_000, gt=0)
    """Stored tokens to read, of all documents (all, if there are fewer)."""
    window: int = Field(default=32, ge=8)
    """Tokens in a context."""
    top: int = Field(default=10, gt=0)
    """Contexts with the highest activations, of documents that may be shown."""
    sampled: int = Field(default=64, ge=8)
    """Firings drawn at random from the same documents: what a latent usually does."""
    unseen: int = Field(default=20, gt=0)
    """Contexts of test documents, as many active as silent, to score descriptions on."""
    effects: int = Field(default=10, gt=0)
    """Tokens promoted, and tokens suppressed."""
    neighbours: int = Field(default=8, gt=0)
    """Latents with the nearest decoder rows."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Of matrix products; auto takes bf16 where the hardware has units for it (AMX, CUDA)."""
    seed: int = Field(default=0, ge=0)
    describe: DescribeSettings = Field(default_factory=DescribeSettings)
