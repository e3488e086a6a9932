"""Which latents a run trains when: all at once, or group after group (progressive latent training)."""

from typing import NamedTuple

from transcoders.dictionary.transcoder import TranscoderConfig
from transcoders.training.settings import VariantSettings


class Stage(NamedTuple):
    """Some consecutive steps with one set of trained latents and one course of the learning rate."""

    number: int
    """From 1."""
    first_step: int
    steps: int
    new: int
    """Latents from here to ``stop`` are this stage's own; those before come from earlier stages."""
    stop: int
    frozen: bool
    """Whether the earlier latents stay as they are."""

    @property
    def last_step(self) -> int:
        """The step before which the stage ends."""
        return self.first_step + self.steps


def plan(config: TranscoderConfig, variant: VariantSettings, steps: int) -> list[Stage]:
    """The stages of ``steps`` steps in all.

    Raises:
        ValueError: there are fewer steps than stages.
    """
    if variant.training == "joint":
        return [Stage(1, 0, steps, 0, config.d_hidden, frozen=False)]
    count = len(config.prefixes)
    shares = list(variant.stage_fractions) or [1 / count] * count
    ends = [(0, config.prefixes[0])]
    ends += list(zip(config.prefixes[:-1], config.prefixes[1:], strict=True))
    if variant.joint_finish:
        shares = [share * (1 - variant.joint_finish) for share in shares] + [variant.joint_finish]
        ends.append((0, config.d_hidden))
    borders = [round(steps * sum(shares[:i])) for i in range(len(shares))] + [steps]
    stages = []
    for i, (new, stop) in enumerate(ends):
        length = borders[i + 1] - borders[i]
        if length < 1:
            raise ValueError(f"stage {i + 1} of {len(ends)} has no step of {steps}")
        stages.append(Stage(i + 1, borders[i], length, new, stop, frozen=new > 0 and not variant.previous_lr_scale))
    return stages
