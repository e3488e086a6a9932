"""Which activations to collect, of which text."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from transcoders.core.places import refuse_secrets
from transcoders.core.settings import Settings
from transcoders.language.settings import HookSettings

Source = Literal["summaries", "wikipedia", "file", "hub"]
Language = Literal["en", "es", "fr"]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class TextSettings(Settings):
    """Say which text to read: packaged summaries or articles of Wikipedia, a file, a Hub's data set, or a mix."""

    source: Annotated[list[Source], BeforeValidator(_as_list)] = Field(default=["summaries"], min_length=1)
    """One, or several to mix in proportion to their documents."""
    language: Language = "en"
    """``summaries``: their language."""
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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in self.source:
            if name in ("file", "hub") and self.path is None:
                raise ValueError(f"path: is missing; source {name!r} needs it")
            if name == "hub" and len(self.source) > 1:
                raise ValueError(
                    f"source: {self.source} mixes 'hub', whose number of documents is unknown; save what you need of "
                    "it as a file in inputs/text, and mix 'file'"
                )
        if len(set(self.source)) < len(self.source):
            raise ValueError(f"source: {self.source} names one twice; remove it")
        if self.language != "en" and "summaries" not in self.source:
            raise ValueError(f"language: {self.language!r} is of summaries only; set source: summaries, or remove it")
        return self


class CollectSettings(Settings):
    """Say which activations to store, of which text."""

    layers: list[int] = Field(min_length=1)
    tokens: int = Field(gt=0)
    """Tokens to run (the first of each context not counted)."""
    text: TextSettings = TextSettings()
    context_length: int = Field(default=256, ge=2)
    context_start: str | None = Field(default=None, min_length=1)
    """What contexts begin with: null takes the tokenizer's BOS, a token's text names another; ``none``: their text.
    The first token of a context, whatever it is, is run but neither stored nor replaced."""
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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.url is not None:
            refuse_secrets("url", self.url)
            if "://" not in self.url:
                raise ValueError(f"url: {self.url!r} is no URL such as s3://bucket/prefix; or use null")
        if self.max_norm is not None and self.outputs == "recomputed":
            raise ValueError(
                "max_norm: needs y to be stored, for its statistics; set outputs: stored, or max_norm: null"
            )
        return self
