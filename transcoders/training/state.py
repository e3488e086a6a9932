"""How far a run is, and what it has counted on the way."""

import time

import torch
from jaxtyping import Int
from torch import Tensor

from transcoders.training.phases import PhasePlan
from transcoders.training.step import SUMMED, Report

Values = dict[str, Tensor | int | float]


class State:
    """Hold the number of steps taken, when each latent fired last, and sums of the losses since the last row."""

    def __init__(self, d_hidden: int, sources: int, tokens_per_step: int, device: torch.device) -> None:
        """Begin at step 0 with ``d_hidden`` latents of each source, none of which has been silent yet."""
        self.step = 0
        silent = torch.zeros(d_hidden, sources, dtype=torch.long, device=device)
        self.since_fired: Int[Tensor, "d_hidden sources"] = silent
        """Training tokens since a latent fired."""
        self.sums = torch.zeros(len(SUMMED), dtype=torch.float64, device=device)
        self.seconds = self.seconds_waited = 0.0
        """Of training, interruptions not counted; of these, waiting for data."""
        self._tokens_per_step = tokens_per_step
        self._last_tick: float | None = None

    def dead(self, plan: PhasePlan, after_tokens: int) -> list[Int[Tensor, "dead"]]:
        """Return each source's latents, from the first that ``plan`` trains, that have been silent for longer."""
        silent = self.since_fired[plan.trained] > after_tokens
        return [column.nonzero().flatten() for column in silent.unbind(1)]

    @torch.no_grad()
    def count(self, report: Report, plan: PhasePlan) -> None:
        """Take in what a step saw."""
        self.step += 1
        self.since_fired += self._tokens_per_step
        self.since_fired[plan.trained].masked_fill_(report.fired, 0)
        self.sums += torch.stack([value.double() for value in report.summed()])

    def tick(self) -> None:
        """Add the time since the last tick to ``seconds``; the first tick of a process only starts the clock."""
        now = time.perf_counter()
        if self._last_tick is not None:
            self.seconds += now - self._last_tick
        self._last_tick = now

    def state_dict(self) -> Values:
        """Return everything."""
        return {
            "step": self.step,
            "since_fired": self.since_fired,
            "sums": self.sums,
            "seconds": self.seconds,
            "seconds_waited": self.seconds_waited,
        }

    def load_state_dict(self, state: Values) -> None:
        """Take over what ``state_dict`` gave."""
        for name in self.state_dict():
            setattr(self, name, state[name])
