"""One optimisation step: gradients that fit in memory, clipping, Adam, constraints."""

import logging
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from transcoders.activations.reader import Batch
from transcoders.core.devices import is_out_of_memory, matmul_precision, multiplies_float32_in_bf16
from transcoders.core.errors import UserError
from transcoders.distributed.ranks import Ranks
from transcoders.kernels import SparseLatents
from transcoders.kernels.auxiliary import variance_of
from transcoders.training.bound import batch_bound
from transcoders.training.phases import Phase
from transcoders.training.schedule import learning_rate
from transcoders.training.settings import TrainSettings
from transcoders.training.sharing import Sharing

log = logging.getLogger(__name__)
SUMMED = ("loss", "nmse", "aux_loss", "l0", "l1", "gradient_norm")
"""Figures of a step whose means stand in the history."""
SMALLEST_MICRO_BATCH = 16


class BatchLosses(NamedTuple):
    """Hold what the backward passes of a batch leave beside the gradients; losses are means over the batch."""

    loss: Float[Tensor, ""]
    nmse: Float[Tensor, ""]
    aux: Float[Tensor, ""]
    l1: Float[Tensor, ""]
    latents: list[list[SparseLatents]]
    """Of each source in each micro-batch."""
    base_l0: Float[Tensor, ""]
    """L0 of the frozen earlier latents, of this process's tokens."""


class Report(NamedTuple):
    """Hold what a step saw."""

    loss: Float[Tensor, ""]
    nmse: Float[Tensor, ""]
    aux_loss: Float[Tensor, ""]
    l0: Float[Tensor, ""]
    l1: Float[Tensor, ""]
    gradient_norm: Float[Tensor, ""]
    fired: Bool[Tensor, "trained sources"]
    """Which of the trained latents fired, on any process's tokens."""
    rate: float

    def summed(self) -> list[Tensor]:
        """Return the figures named in ``SUMMED``."""
        return [getattr(self, name) for name in SUMMED]


class Stepper:
    """Take the steps of a run; the only state is how many tokens fit in memory at a time."""

    def __init__(
        self, settings: TrainSettings, seed: int, device: torch.device, ranks: Ranks, sharing: Sharing
    ) -> None:
        """Prepare steps on ``device``; ``seed`` decides what is drawn at each step."""
        self._settings, self._seed, self._ranks, self._sharing = settings, seed, ranks, sharing
        self.micro_batch_size = min(settings.micro_batch_size or settings.batch_size, settings.batch_size)
        self._bf16 = settings.precision == "bf16" or (settings.precision == "auto" and device.type == "cuda")
        if self._bf16 and device.type == "cpu" and not multiplies_float32_in_bf16():
            log.warning("train.precision: bf16 needs a CPU with AMX; here it changes AuxK alone")

    def state_dict(self) -> dict[str, int]:
        """Return how many tokens fit in memory at a time."""
        return {"micro_batch_size": self.micro_batch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take over what ``state_dict`` gave."""
        self.micro_batch_size = state["micro_batch_size"]

    def take(self, phase: Phase, batch: Batch, number: int, dead: list[Tensor]) -> Report:
        """Take step ``number`` (from 0) on a batch in normalised units."""
        settings, plan = self._settings, phase.plan
        step = number - plan.first_step
        rate = learning_rate(step, plan.steps, settings.learning_rate, settings.warmup, settings.decay)
        with matmul_precision(batch.x.device, bf16=self._bf16):
            losses = self.gradients(phase, batch, number, dead)
        norm = phase.optimiser.step_(step + 1, rate, settings.gradient_clip)
        phase.constrain_(step, dead, settings.dead_boost)
        return self._report(phase, losses, norm, rate)

    def gradients(self, phase: Phase, batch: Batch, number: int, dead: list[Tensor]) -> BatchLosses:
        """Leave the batch's gradients in the phase's part, from micro-batches that are halved until memory suffices."""
        while True:
            phase.part.zero_grad()
            try:
                return self._backward(phase, batch, number, dead)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(len(batch.x))

    def _halve(self, tokens: int) -> None:
        if self._ranks.world.size > 1:
            raise UserError(
                f"train.micro_batch_size: out of memory with {min(tokens, self.micro_batch_size)} tokens at a "
                "time; lower it, or train.d_hidden, or raise distributed.latents"
            ) from None
        if self.micro_batch_size < 2 * SMALLEST_MICRO_BATCH:
            raise UserError(
                f"train.d_hidden: out of memory even with {self.micro_batch_size} tokens at a time; "
                "lower train.d_hidden, or take a larger device"
            ) from None
        self.micro_batch_size //= 2
        log.warning("out of memory: %d tokens at a time from here on, same result", self.micro_batch_size)

    def _backward(self, phase: Phase, batch: Batch, number: int, dead: list[Tensor]) -> BatchLosses:
        """Add up the gradients of the reconstruction, of AuxK and of the penalty on weights."""
        settings, objective, tokens = self._settings, phase.objective, self._settings.batch_size
        xs = batch.x.split(self.micro_batch_size)
        ys, base_l0 = self._without_base(phase, xs, batch.y.split(self.micro_batch_size))
        bound = batch_bound(phase.part, list(xs), tokens, self._ranks.world, self._sharing.processes)
        with_aux = bool(settings.aux_coefficient and self._sharing.total(sum(map(len, dead)), batch.x.device))
        loss, nmse, l1 = (batch.x.new_zeros(()) for _ in range(3))
        residuals, latents = [], []
        for x, y in zip(xs, ys, strict=True):
            share = len(x) / tokens
            losses = objective.losses(x, y, bound, self._generator(number, 0))
            (share * losses.total).backward()
            loss += share * losses.total.detach()
            nmse += share * losses.nmse
            l1 += share * losses.l1
            residuals.append(losses.residual)
            latents.append([part._replace(values=part.values.detach()) for part in losses.latents])
        aux = self._backward_of_aux(phase, xs, residuals, dead) if with_aux else batch.x.new_zeros(())
        loss = loss + settings.aux_coefficient * aux if with_aux else loss
        together = torch.stack([loss, nmse, aux, l1])
        together = self._ranks.data.add_gradients_(list(phase.part.parameters()), together)
        loss, nmse, aux, l1 = together.unbind()
        penalty = objective.orthogonality(self._generator(number, 1), phase.base)
        if penalty is not None:
            penalty.backward()
            loss = loss + penalty.detach()
        return BatchLosses(loss, nmse, aux, l1, latents, base_l0)

    @torch.no_grad()
    def _without_base(
        self, phase: Phase, xs: tuple[Tensor, ...], ys: tuple[Tensor, ...]
    ) -> tuple[list[Tensor], Float[Tensor, ""]]:
        """Return what the frozen earlier latents leave of y, and their L0."""
        l0, left = xs[0].new_zeros(()), list(ys)
        if phase.base is not None:
            for i, x in enumerate(xs):
                latents = phase.base.encode_sources(x)
                left[i] = left[i] - phase.base.decode_sources(latents, x)
                for part in latents:
                    l0 += (part.values > 0).sum() / self._settings.batch_size
        return left, l0

    def _backward_of_aux(
        self,
        phase: Phase,
        xs: tuple[Tensor, ...],
        residuals: list[Tensor],
        dead: list[Tensor],
    ) -> Float[Tensor, ""]:
        """Add AuxK's gradients, of every ``aux_every``-th token of the batch, and return AuxK."""
        tokens, every = self._settings.batch_size, self._settings.aux_every
        aux = xs[0].new_zeros(())
        variance = self._variance(torch.cat(residuals))
        at = self._ranks.data.share(tokens).start
        for x, residual in zip(xs, residuals, strict=True):
            seen = slice(-at % every, None, every)
            at += len(x)
            if len(x_seen := x[seen].contiguous()):
                value = phase.objective.aux(x_seen, residual[seen].contiguous(), dead, variance)
                value = value * (len(x_seen) / -(-tokens // every))
                (self._settings.aux_coefficient * value).backward()
                aux += value.detach()
        return aux

    def _variance(self, residual: Tensor) -> Float[Tensor, ""]:
        """Return the variance of the full batch's residual."""
        if self._ranks.data.size == 1:
            return variance_of(residual)
        tokens = self._settings.batch_size
        mean = self._ranks.data.sum_(residual.sum(0)) / tokens
        return self._ranks.data.sum_((residual - mean).square().sum()) / (tokens * residual.shape[1])

    def _generator(self, number: int, purpose: int) -> torch.Generator:
        """Return the source of a step's random choices: the same after a resume, and for every micro-batch."""
        return torch.Generator().manual_seed((self._seed * 1_000_003 + number) * 2 + purpose)

    @torch.no_grad()
    def _report(self, phase: Phase, losses: BatchLosses, norm: Tensor, rate: float) -> Report:
        """Add up over processes what fired, and let the objective react to the L0."""
        count, sources = phase.part.config.d_hidden, len(phase.part.sources)
        l0 = losses.loss.new_zeros(())
        has_fired = torch.zeros(sources, count + 1, dtype=torch.bool, device=l0.device)
        for of_part in losses.latents:
            for row, latents in zip(has_fired, of_part, strict=True):
                fired = latents.values > 0
                # Entries that did not fire mark the place too many: to take them out, the GPU would have to be waited
                # for.
                row.index_fill_(0, torch.where(fired, latents.indices.long(), count), True)
                l0 += fired.sum() / self._settings.batch_size
        silent = self._ranks.data.min_((~has_fired[:, :-1]).to(torch.uint8).T.contiguous())
        l0, base_l0 = self._ranks.world.sum_(torch.stack([l0, losses.base_l0]))
        phase.objective.after_step(losses.latents, l0, self._ranks.world.min_)
        total_l0 = l0 + base_l0
        return Report(losses.loss, losses.nmse, losses.aux, total_l0, losses.l1, norm, silent == 0, rate)
