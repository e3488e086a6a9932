"""The base of every settings class: strict, frozen, no unknown keys."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Validated, immutable parameters of one part of the library."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
