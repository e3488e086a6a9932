"""Which prompts are traced or steered, and how."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from transcoders.core.settings import Settings

RunNames = list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*-[0-9]+$")]]


class CircuitSettings(Settings):
    """Say how the circuits of sets of transcoders, one per layer or cross-layer ones, are traced."""

    seeds: list[int] = Field(default=[])
    """Seeds of ``runs`` whose transcoders are put together; an empty list turns the stage off."""
    crosslayer: RunNames = Field(default=[])
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
    ablated: int = Field(default=64, ge=0)
    """Latents of a prompt, drawn at random, that are doubled and ablated one by one to test its graph; 0 for none."""
    connections: int = Field(default=3, ge=0)
    """Strongest input-independent connections into each latent to list; 0 for none."""
    seed: int = Field(default=0, ge=0)
    """Of the random latents that the influential ones are compared with."""

    @model_validator(mode="after")
    def _seeds_are_traced(self) -> Self:
        _check_seeds(self.crosslayer, self.seeds, "circuits")
        return self


class InterventionSettings(Settings):
    """Say how texts are steered with sets of transcoders, one per layer or cross-layer ones."""

    seeds: list[int] = Field(default=[])
    """Seeds of ``runs`` whose transcoders, one for each of ``runs.layers``, steer; an empty list: no stage."""
    crosslayer: RunNames = Field(default=[])
    """Names of runs of cross-layer transcoders that steer beside those of their seed."""
    prompts: str = Field(default="inputs/prompts/interventions.yaml", min_length=1)
    """A YAML file of prompts: name, text, answer, and which latents to hold (without: the strongest ones)."""
    doses: list[float] = Field(default=[0.0, 1.0, 2.0, 4.0, 8.0], min_length=1)
    """What a held latent's value is multiplied with: 0 ablates it."""
    strongest: int = Field(default=3, gt=0)
    """Latents to hold where a prompt names none: those with the largest direct effects on its answer."""
    tokens: int = Field(default=24, gt=0)
    """How many tokens to generate."""
    seed: int = Field(default=0, ge=0)
    """Of the random latents that the chosen ones are compared with."""

    @model_validator(mode="after")
    def _seeds_are_steered(self) -> Self:
        _check_seeds(self.crosslayer, self.seeds, "interventions")
        return self


def _check_seeds(runs: list[str], seeds: list[int], section: str) -> None:
    for name in runs:
        if int(name.rsplit("-", 1)[1]) not in seeds:
            raise ValueError(f"crosslayer: the seed of {name} is not in {section}.seeds {seeds}; add it there")
