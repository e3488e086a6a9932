"""Which prompts are traced, and how much is kept of their graphs."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from transcoders.core.settings import Settings


class CircuitSettings(Settings):
    """Say how the circuits of sets of transcoders, one per layer or cross-layer ones, are traced."""

    seeds: list[int] = Field(default=[])
    """Seeds of ``runs`` whose transcoders are put together; an empty list turns the stage off."""
    crosslayer: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*-[0-9]+$")]] = Field(default=[])
    """Names of runs of cross-layer transcoders, such as clt-0to17-0, that are traced with those of their seed."""
    prompts: str = Field(default="inputs/prompts/circuits.yaml", min_length=1)
    """A YAML file of prompts: name, task, text, answer, foil."""
    loss_tokens: int = Field(default=1024, gt=0)
    """Test tokens on which the model with all MLPs replaced is judged."""
    max_latents: int = Field(default=4096, gt=0)
    """Latents of a prompt whose own causes are traced, the most influential ones."""
    batch_size: int = Field(default=128, gt=0)
    """Targets per backward pass: bounds memory."""
    node_threshold: float = Field(default=0.8, gt=0, le=1)
    """Nodes kept carry this share of the influence on the output."""
    edge_threshold: float = Field(default=0.95, gt=0, le=1)
    """Edges kept carry this share of the influence between kept nodes."""
    faithfulness: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Graphs of different transcoders are compared at this share of the logit difference."""
    connections: int = Field(default=3, ge=0)
    """Strongest input-independent connections into each latent to list; 0 for none."""
    seed: int = Field(default=0, ge=0)
    """Of the random latents that the influential ones are compared with."""

    @model_validator(mode="after")
    def _seeds_are_traced(self) -> Self:
        for name in self.crosslayer:
            if int(name.rsplit("-", 1)[1]) not in self.seeds:
                raise ValueError(f"crosslayer: the seed of {name} is not in circuits.seeds {self.seeds}; add it there")
        return self
