"""How much held-out text the metrics are computed on."""

from pydantic import Field

from transcoders.core.settings import Settings


class EvaluateSettings(Settings):
    """Say how much text the evaluation reads, and how its intervals are drawn."""

    tokens: int = Field(default=50_000, gt=0)
    """Stored test tokens for the reconstruction metrics (all, if there are fewer)."""
    loss_tokens: int = Field(default=4096, gt=0)
    """Test tokens run through the whole model for the loss metrics (dear on CPU)."""
    bootstrap: int = Field(default=1000, gt=0)
    """Resamples of the documents for 95 % intervals."""
    seed: int = Field(default=0, ge=0)
