"""What is planted into activations, and which runs are trained on them."""

from typing import Self

from pydantic import Field, model_validator

from transcoders.core.settings import Settings


class FamilySettings(Settings):
    """Say what the families of features are that are planted: a parent and some children each."""

    nested: int = Field(default=64, gt=0)
    """Families whose children fire with their parent alone."""
    controls: int = Field(default=16, gt=0)
    """Families without children, and as many whose children fire whatever their parent does."""
    children: int = Field(default=4, gt=1)
    lowest_rate: float = Field(default=0.002, gt=0, lt=1)
    """Share of the tokens on which the rarest parent fires; rates are log-uniform up to ``highest_rate``."""
    highest_rate: float = Field(default=0.02, gt=0, lt=1)
    with_child: float = Field(default=0.8, gt=0, lt=1)
    """Share of a parent's firings with exactly one child."""
    size: float = Field(default=1.0, gt=0)
    """Of a feature in y: times what the median living latent of the plain run adds to y where it fires."""
    child_size: float = Field(default=1.0, gt=0)
    """Of a child in y, times that of its parent."""
    spread: float = Field(default=0.2, ge=0, lt=1)
    """Activations are uniform within 1 ± so much."""
    detectable: float = Field(default=0.99, gt=0.5, lt=1)
    """AUROC of a probe on x along each feature's own direction, which decides its size in x."""
    components: int = Field(default=64, ge=0)
    """Principal components of x and of y that features are orthogonal to."""
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _rates_rise(self) -> Self:
        if self.highest_rate < self.lowest_rate:
            raise ValueError(f"highest_rate: {self.highest_rate:g} is below lowest_rate, {self.lowest_rate:g}")
        return self

    @property
    def directions(self) -> int:
        """How many orthogonal directions the features need in x, and in y."""
        return (self.nested + 2 * self.controls) * (1 + self.children)


class PlantedSettings(Settings):
    """Say which variants are trained on planted activations, and how they are judged."""

    layers: list[int] = Field(default_factory=list)
    """Of ``runs.layers``; none turns the stages off."""
    variants: list[str] = Field(default_factory=list)
    """Of ``variants``: each is trained anew on activations with families in them, with each of ``seeds``."""
    seeds: list[int] = Field(default_factory=list)
    draws: int = Field(default=8, gt=0)
    """Times that the held-out tokens are measured, each with other firings."""
    bootstrap: int = Field(default=1000, gt=0)
