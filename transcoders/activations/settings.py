"""Which activations to collect, of which text, and how to split its documents."""

from typing import Literal

from pydantic import Field, model_validator

from transcoders.settings import Settings


class TextSettings(Settings):
    """Which text: the packaged Wikipedia, a file, or a data set of the Hugging Face Hub."""

    source: Literal["wikipedia", "file", "hub"] = "wikipedia"
    path: str | None = None
    """``file``: a .txt (documents separated by blank lines), .jsonl or .parquet file.
    ``hub``: the data set's id."""
    column: str = Field(default="text", min_length=1)
    """The field that holds the text (jsonl, parquet, hub)."""
    subset: str | None = None
    """``hub``: the data set's configuration name."""
    split: str = Field(default="train", min_length=1)
    """``hub``: the data set's split."""
    revision: str | None = None
    """``hub``: branch, tag or commit of the data set."""


class HookSettings(Settings):
    """TransformerLens hook names of x and y, with ``{layer}`` for the layer's number."""

    input: str = Field(default="blocks.{layer}.mlp.hook_in", pattern=r"\{layer\}")
    output: str = Field(default="blocks.{layer}.hook_mlp_out", pattern=r"\{layer\}")


class CollectSettings(Settings):
    """Which activations to store, of which text."""

    layers: list[int] = Field(min_length=1)
    tokens: int = Field(gt=0)
    """Tokens to run (BOS not counted)."""
    text: TextSettings = TextSettings()
    context_length: int = Field(default=256, ge=2)
    batch_size: int = Field(default=8, gt=0)
    """Contexts per forward pass."""
    dtype: Literal["float16", "bfloat16", "float32", "int8"] = "float16"
    """``int8`` with a scale for each row."""
    codec: Literal["zstd", "blosc-lz4"] | None = None
    """Lossless; ``zstd`` suits int8, ``blosc-lz4`` (bits shuffled) bfloat16."""
    outputs: Literal["stored", "recomputed"] = "stored"
    """``recomputed``: store x alone; the model's own MLP makes y of it whenever it is read."""
    max_norm: float | None = Field(default=None, gt=1)
    """Leave out tokens whose x or y is longer than this many medians; null keeps all."""
    pool: float = Field(default=8.0, ge=1)
    """Read up to this many times ``tokens`` of text, so that contexts come from many documents."""
    seed: int = Field(default=0, ge=0)
    hooks: HookSettings = HookSettings()
    url: str | None = None
    """Where the stores lie, as fsspec writes it (``s3://bucket/prefix``); null: in data/activations/."""


class SplitSettings(Settings):
    """Expected shares of the documents."""

    validation: float = Field(default=0.05, gt=0, lt=1)
    test: float = Field(default=0.1, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _leaves_some_to_train(self) -> "SplitSettings":
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together must be below 1")
        return self
