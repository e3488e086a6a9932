"""What, besides its weights, defines a cross-layer transcoder."""

from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from transcoders.core.settings import Settings
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.names import EncoderName
from transcoders.kernels import Group

Budget = Literal["layer", "token"]


class CrossLayerConfig(Settings):
    """Describe the layers, sizes, units and provenance of a cross-layer transcoder."""

    layers: tuple[int, ...] = Field(min_length=1, strict=False)
    """That it reads and writes, ascending."""
    reach: int | None = Field(default=None, ge=0)
    """Of these layers, how many beyond its own a latent writes to at most; None: to all that follow, 0: to none."""
    budget: Budget = "layer"
    """What k counts: k latents of each layer, or k times the layers of all of a token's (llamascopium: layertopk)."""
    encoder: EncoderName = "topk"
    d_model: int = Field(gt=0)
    d_hidden: int = Field(gt=0)
    """Latents of each layer."""
    k: int = Field(gt=0)
    """Active latents of each layer per token: exactly with topk and a budget for each layer, else on average."""
    prefixes: tuple[int, ...] = Field(default=(), strict=False)
    """Sizes of the valid smaller transcoders in a nested one: so many latents of each layer."""
    prefix_k: tuple[int, ...] = Field(default=(), strict=False)
    skip: bool = False
    """Whether a layer's input also reaches its own output by an affine map."""
    input_scales: tuple[float, ...] = Field(strict=False)
    """The weights of a layer expect ``x / input_scale``."""
    output_scales: tuple[float, ...] = Field(strict=False)
    provenance: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not all(a < b for a, b in pairwise(self.layers)):
            raise ValueError(f"layers {self.layers} do not ascend")
        for name in ("input_scales", "output_scales"):
            if len(getattr(self, name)) != len(self.layers):
                raise ValueError(f"{name}: {len(getattr(self, name))} numbers for {len(self.layers)} layers")
        if self.budget == "token" and (self.encoder != "topk" or self.prefixes):
            raise ValueError("budget: token goes with the encoder topk, and not with prefixes")
        self.source(0)
        return self

    @property
    def groups(self) -> tuple[Group, ...]:
        """Return the latents of each layer that each prefix adds."""
        return self.source(0).groups

    @property
    def width(self) -> int:
        """Return the numbers in a token's row, that of all layers side by side."""
        return len(self.layers) * self.d_model

    def targets(self, number: int) -> range:
        """Return the numbers of the layers that layer number ``number`` writes to, counted from the first one here."""
        last = len(self.layers) if self.reach is None else min(len(self.layers), number + self.reach + 1)
        return range(number, last)

    def source(self, number: int) -> TranscoderConfig:
        """Return the config of one layer's latents, which write to its targets' outputs side by side."""
        return TranscoderConfig(
            encoder=self.encoder,
            d_in=self.d_model,
            d_out=len(self.targets(number)) * self.d_model,
            d_hidden=self.d_hidden,
            k=self.k,
            prefixes=self.prefixes,
            prefix_k=self.prefix_k,
        )

    def file(self, number: int) -> str:
        """Return the name of the file of one layer's weights."""
        return f"layer_{self.layers[number]}.safetensors"

    def of_part(self, start: int, stop: int) -> "CrossLayerConfig":
        """Return the config of the groups within latents [start, stop) of each layer.

        Raises:
            ValueError: ``start`` or ``stop`` is not 0 or a prefix.
        """
        part = self.source(0).of_part(start, stop)
        changes = {name: getattr(part, name) for name in ("d_hidden", "k", "prefixes", "prefix_k")}
        return self.model_copy(update={**changes, "skip": self.skip and start == 0})
