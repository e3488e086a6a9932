"""The base of every settings class (strict, frozen, no unknown keys), and the model's."""

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Validated, immutable parameters of one part of the library."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class ModelSettings(Settings):
    """Which language model."""

    name: str = Field(min_length=1)
    """``gemma-3-270m`` (comes as a Python package, no account needed), a Hub id or a folder."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; null takes the default branch."""
