"""Training one transcoder: take a step, now and then look at held-out tokens or write a checkpoint."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from transcoders.activations.reader import Batch
from transcoders.core.errors import UserError
from transcoders.dictionary.dictionary import Config, Dictionary
from transcoders.distributed.ranks import ALONE, Ranks
from transcoders.training.checkpoint import CheckpointFile, Part
from transcoders.training.history import Best, History, validation_nmse
from transcoders.training.phases import Phase, PhasePlan, begin_, phase_plans
from transcoders.training.settings import TrainSettings, VariantSettings
from transcoders.training.sharing import HERE, Sharing
from transcoders.training.sliced.sharing import Slices
from transcoders.training.start import Beginning
from transcoders.training.state import State
from transcoders.training.step import Stepper

log = logging.getLogger(__name__)


class Reader(Protocol):
    """Describe what gives a run its batches; ``ShuffledReader`` does."""

    tokens: int
    """Of an epoch."""
    batches_per_epoch: int

    @property
    def seconds_waited(self) -> float:
        """Return the time that was spent waiting for data."""

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yield batch number ``first``, counted over epochs, and all after it."""


class Job(NamedTuple):
    """Say what to train, on what, and where it is saved on the way."""

    config: Config
    settings: TrainSettings
    variant: VariantSettings
    reader: Reader
    """Gives this process's share of each batch."""
    start: Beginning
    validation: list[Batch]
    checkpoint: Path
    device: torch.device
    checkpoint_every: int = 200
    """Steps; decides no result."""
    ranks: Ranks = ALONE


class Result(NamedTuple):
    """Hold what a finished run leaves."""

    model: Dictionary
    """With its last weights; of several slices, the one that lies here."""
    sharing: Sharing
    history: list[dict[str, Any]]
    best_weights: dict[str, Tensor]
    best_step: int
    best_nmse: float
    seconds: float
    """Of training, interruptions not counted."""
    seconds_waited: float
    """Of these, for data."""

    def cost(self) -> dict[str, float]:
        """Return what training took: no two runs give the same."""
        tokens = self.history[-1]["tokens"]
        return {
            "tokens": tokens,
            "seconds": round(self.seconds, 1),
            "tokens_per_second": round(tokens / self.seconds),
            "share_of_time_waiting_for_data": round(self.seconds_waited / self.seconds, 5),
        }


class Schedule(NamedTuple):
    """Say what happens after which step; steps are counted from 1 once they are taken."""

    phases: list[PhasePlan]
    steps: int
    log_every: int
    validate_every: int
    save_every: int

    def phase(self, number: int) -> PhasePlan:
        """Return the phase that step ``number`` (from 0) belongs to."""
        return next(plan for plan in self.phases if number < plan.last_step)

    def validates(self, step: int) -> bool:
        """Say whether held-out tokens are looked at: every so many steps, and at the end of each phase."""
        return step % self.validate_every == 0 or any(step == plan.last_step for plan in self.phases)

    def logs(self, step: int) -> bool:
        """Say whether the history gets a row."""
        return step % self.log_every == 0 or self.validates(step)

    def saves(self, step: int) -> bool:
        """Say whether a checkpoint is written."""
        return step % self.save_every == 0 or step == self.steps


def schedule_of(job: Job) -> Schedule:
    """Lay out the steps of ``job``.

    Raises:
        UserError: there are too few tokens for a batch or for the phases, or options that do not go together.
    """
    settings, ranks = job.settings, job.ranks
    if settings.batch_size < ranks.data.size:
        raise UserError(f"train.batch_size: {settings.batch_size} is less than the {ranks.data.size} processes")
    if not job.reader.batches_per_epoch:
        raise UserError(
            f"train.batch_size: {settings.batch_size} is more than the {job.reader.tokens} tokens "
            "of the training documents; lower it or raise collect.tokens"
        )
    if ranks.latents.size > 1 and job.variant.orthogonality == "projection":
        raise UserError(
            "distributed.latents: slices do not go with orthogonality: projection; set it to 1, or change this"
        )
    steps = settings.epochs * job.reader.batches_per_epoch
    try:
        phases = phase_plans(job.config, job.variant, steps)
    except ValueError as error:
        raise UserError(f"train.epochs: {error}; raise it, or collect.tokens, or lower train.batch_size") from None
    return Schedule(phases, steps, settings.log_every, settings.validate_every, job.checkpoint_every)


class Trainer:
    """Hold the parts of one run, each of which can be saved and put back, and loop over its steps."""

    def __init__(self, job: Job) -> None:
        """Make the model and all parts of the run at their start.

        Raises:
            UserError: as ``schedule_of``.
        """
        self.job, schedule = job, schedule_of(job)
        self.sharing: Sharing = Slices(job.ranks) if job.ranks.latents.size > 1 else HERE
        # A slice of the latents has groups of its own sizes: the phases are laid out in them.
        self.model = self.sharing.model(job.config).to(job.device)
        self.schedule = schedule._replace(phases=phase_plans(self.model.config, job.variant, schedule.steps))
        self.state = State(self.model.config.d_hidden, len(self.model.sources), job.settings.batch_size, job.device)
        self.history = History(job.settings, job.reader.batches_per_epoch, self.sharing)
        self.best = Best()
        self.stepper = Stepper(job.settings, job.start.seed, job.device, job.ranks, self.sharing)
        self.phase = self._phase(self.schedule.phases[0])

    def train(self, on_validation: Callable[[History], None] = lambda history: None) -> Result:
        """Take all steps, from the checkpoint if there is one that fits, and return what came out.

        The finished run's checkpoint stays until ``forget``.
        """
        job, state, schedule = self.job, self.state, self.schedule
        if not self._resume():
            self._begin()
        for batch in self._batches():
            if schedule.phase(state.step) is not self.phase.plan:
                self.phase = self._phase(schedule.phase(state.step))
                self._begin()
            plan = self.phase.plan
            dead = state.dead(plan, job.settings.dead_after_tokens)
            report = self.stepper.take(self.phase, batch, state.step, dead)
            state.count(report, plan)
            if schedule.logs(state.step):
                self.history.add(state, plan, report.rate)
            if schedule.validates(state.step):
                self._validate()
                if job.ranks.first:
                    on_validation(self.history)
            if schedule.saves(state.step):
                state.tick()  # a run that was killed after its last step still knows what that step took
                self._checkpoint().save(self._parts(), self._owners())
        best, rows = self.best, self.history.rows
        outcome = (rows, best.weights, best.step, best.nmse, state.seconds, state.seconds_waited)
        return Result(self.model, self.sharing, *outcome)

    def forget(self) -> None:
        """Delete the checkpoint: the run's outcome is safe elsewhere."""
        if self.job.ranks.first:
            self._checkpoint().delete()

    def _phase(self, plan: PhasePlan) -> Phase:
        return Phase(plan, self.model, self.job.settings, self.job.variant, self.sharing)

    def _begin(self) -> None:
        """Start the phase's new latents, on all processes alike."""
        plan = self.phase.plan
        if plan.number > 1:
            log.info("phase %d of %d: latents %d to %d", plan.number, len(self.schedule.phases), plan.new, plan.stop)
        begin_(plan, self.model, self.job.start, self.sharing)
        for weights in self.model.state_dict().values():
            self.job.ranks.data.broadcast_(weights)

    def _batches(self) -> Iterator[Batch]:
        """Yield the batches that are left, in normalised units, with a progress bar and the time taken."""
        job, state = self.job, self.state
        tokens = job.settings.batch_size
        bar = tqdm(
            desc="train",
            unit="tok",
            unit_scale=True,
            total=self.schedule.steps * tokens,
            initial=state.step * tokens,
            disable=not job.ranks.first,
        )
        batches = job.reader.batches(state.step)
        with bar:
            state.tick()
            while state.step < self.schedule.steps:
                waited = job.reader.seconds_waited
                batch = next(batches)
                state.seconds_waited += job.reader.seconds_waited - waited
                yield Batch(*self.model.normalised(*batch))
                state.tick()
                bar.update(tokens)
                if self.history.rows and (row := self.history.rows[-1])["step"] == state.step:
                    bar.set_postfix({"loss": f"{row['loss']:.4f}", "dead": f"{row['dead_fraction']:.1%}"})

    def _validate(self) -> None:
        """Measure the error of the latents so far; the best weights are sought in the last phase."""
        plan = self.phase.plan
        nmse = validation_nmse(self.model.part(0, plan.stop), self.job.validation, self.job.ranks.data)
        self.history.rows[-1]["validation_nmse"] = nmse
        if plan is self.schedule.phases[-1]:
            self.best.offer(self.model, self.state.step, nmse)

    def _checkpoint(self) -> CheckpointFile:
        writes = self.job.ranks.first or self.sharing.processes > 1
        return CheckpointFile(self.job.checkpoint, self.sharing, writes=writes)

    def _parts(self) -> dict[str, Part]:
        return {
            "model": self.model,
            "phase": self.phase,
            "state": self.state,
            "history": self.history,
            "best": self.best,
            "stepper": self.stepper,
        }

    def _owners(self) -> dict[str, Dictionary]:
        """Return, for each part, the model whose latents its rows are."""
        return {name: self.phase.part if name == "phase" else self.model for name in self._parts()}

    @torch.no_grad()
    def _resume(self) -> bool:
        """Put all parts back to the checkpoint, if every process sees the same one, and say whether there is one."""
        content, world = self._checkpoint().read(), self.job.ranks.world
        step = torch.tensor(content.values["state"]["step"] if content else -1, device=self.job.device)
        if int(world.min_(step.clone())) != int(step) or -int(world.min_(-step)) != int(step):
            raise UserError(
                f"{self.job.checkpoint}: not every process sees the same checkpoint; all hosts must share the folder "
                "(set XDG_CACHE_HOME to one)"
            )
        if content is None:
            return False
        self.phase = self._phase(self.schedule.phase(int(step) - 1))
        self._checkpoint().put_back(content, self._parts(), self._owners())
        log.info("continuing at step %d of %d", self.state.step, self.schedule.steps)
        return True
