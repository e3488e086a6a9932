"""Which language model, and where its MLPs are read."""

from pydantic import Field

from transcoders.core.settings import Settings


class ModelSettings(Settings):
    """Which language model."""

    name: str = Field(min_length=1)
    """``gemma-3-270m`` (comes as a Python package, no account needed), a Hub id or a folder."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; null takes the default branch. The commit that this is then is recorded."""


class HookSettings(Settings):
    """TransformerLens hook names of x and y, with ``{layer}`` for the layer's number."""

    input: str = Field(default="blocks.{layer}.mlp.hook_in", pattern=r"\{layer\}")
    output: str = Field(default="blocks.{layer}.hook_mlp_out", pattern=r"\{layer\}")
