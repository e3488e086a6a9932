"""How much held-out text the metrics are computed on, and how exactly."""

from typing import Literal

from pydantic import Field

from transcoders.core.settings import Settings

Precision = Literal["auto", "float32"]


class EvaluateSettings(Settings):
    """Say how much text the evaluation reads, and how its intervals are drawn."""

    tokens: int = Field(default=50_000, gt=0)
    """Stored test tokens for the reconstruction metrics (all, if there are fewer)."""
    loss_tokens: int = Field(default=4096, gt=0)
    """Test tokens run through the model for the loss metrics (dear on CPU)."""
    precision: Precision = "auto"
    """Of the logits; auto takes bfloat16 products on CPUs with AMX, which moves CE by 5e-4 and KL by 1e-4."""
    bootstrap: int = Field(default=1000, gt=0)
    """Resamples of the documents for 95 % intervals."""
    seed: int = Field(default=0, ge=0)
