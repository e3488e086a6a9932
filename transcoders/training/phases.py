"""Which latents a run trains when: all at once, or group after group (progressive latent training)."""

from typing import NamedTuple

import torch
from torch import Tensor

from transcoders.dictionary.config import kind_of
from transcoders.dictionary.dictionary import Config, Dictionary
from transcoders.training.objective import Objective
from transcoders.training.optimiser import Adam, Projection
from transcoders.training.settings import TrainSettings, VariantSettings
from transcoders.training.sharing import Sharing
from transcoders.training.start import Beginning


class PhasePlan(NamedTuple):
    """Describe some consecutive steps with one set of trained latents and one course of the learning rate."""

    number: int
    """From 1."""
    first_step: int
    steps: int
    new: int
    """Latents from here to ``stop`` are this phase's own; those before come from earlier phases."""
    stop: int
    frozen: bool
    """Whether the earlier latents stay as they are."""

    @property
    def last_step(self) -> int:
        """Return the step before which the phase ends."""
        return self.first_step + self.steps

    @property
    def trained(self) -> slice:
        """Return the latents that the phase moves."""
        return slice(self.new if self.frozen else 0, self.stop)


def phase_plans(config: Config, variant: VariantSettings, steps: int) -> list[PhasePlan]:
    """Divide ``steps`` steps into phases.

    Raises:
        ValueError: there are fewer steps than phases.
    """
    if variant.training == "joint":
        return [PhasePlan(1, 0, steps, 0, config.d_hidden, frozen=False)]
    count = len(config.prefixes)
    shares = list(variant.phase_fractions) or [1 / count] * count
    ends = [(0, config.prefixes[0])]
    ends += list(zip(config.prefixes[:-1], config.prefixes[1:], strict=True))
    if variant.joint_finish:
        shares = [share * (1 - variant.joint_finish) for share in shares] + [variant.joint_finish]
        ends.append((0, config.d_hidden))
    borders = [round(steps * sum(shares[:i])) for i in range(len(shares))] + [steps]
    plans = []
    for i, (new, stop) in enumerate(ends):
        length = borders[i + 1] - borders[i]
        if length < 1:
            raise ValueError(f"phase {i + 1} of {len(ends)} has no step of {steps}")
        plans.append(PhasePlan(i + 1, borders[i], length, new, stop, frozen=new > 0 and not variant.previous_lr_scale))
    return plans


class Phase:
    """Hold the parts that the steps of one phase work with; they are made anew when the next begins.

    A phase trains ``part``, which shares the weights of the model, on what ``base``, the frozen earlier latents,
    leave of y.
    """

    def __init__(
        self, plan: PhasePlan, model: Dictionary, settings: TrainSettings, variant: VariantSettings, sharing: Sharing
    ) -> None:
        """Make the parts of ``model`` that ``plan`` asks for, with an objective and an optimiser at their start."""
        self.plan = plan
        first = plan.trained.start
        self.base = model.part(0, first) if first else None
        self.part = model.part(first, plan.stop)
        fixed = {*model.encoder.without_gradient, *(("b_dec",) if plan.frozen else ())}
        for name, parameter in self.part.named_parameters():
            parameter.requires_grad_(kind_of(name) not in fixed)
        self.objective = Objective(self.part, settings, variant, sharing)
        self.optimiser = Adam(self.part, sharing, slow_rows=plan.new - first, slow_rate=variant.previous_lr_scale)
        self.projections: list[Projection] = []
        if variant.orthogonality == "projection" and self.base is not None:
            pairs = zip(self.part.sources, self.base.sources, strict=True)
            self.projections = [Projection(new, old, variant.orthogonality_neighbours) for new, old in pairs]

    @torch.no_grad()
    def constrain_(self, step: int, dead: list[Tensor], boost: float) -> None:
        """Bring the part back to what is valid after ``step`` of the phase, and push each source's ``dead`` latents."""
        for projection in self.projections:
            projection.apply_(step)
        for source, dead_of in zip(self.part.sources, dead, strict=True):
            source.encoder.constrain_(source)
            source.b_enc[dead_of] += boost

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the next step depends on beside the weights."""
        neighbours = {f"neighbours.{n}": projection.neighbours for n, projection in enumerate(self.projections)}
        return {"pressure": self.objective.pressure, **self.optimiser.state_dict(), **neighbours}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what ``state_dict`` gave."""
        self.objective.pressure = state["pressure"]
        self.optimiser.load_state_dict(state)
        for number, projection in enumerate(self.projections):
            projection.neighbours = state[f"neighbours.{number}"]


@torch.no_grad()
def begin_(plan: PhasePlan, model: Dictionary, start: Beginning, sharing: Sharing) -> None:
    """Start the new latents of a phase in ``model``; a joint finish has none."""
    if plan.number > 1 and not plan.new:
        return
    earlier = model.truncate(plan.new) if plan.new else None
    start.of_phase(plan.number, earlier).initialise_(model.part(plan.new, plan.stop), sharing)
