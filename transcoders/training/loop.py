"""Training one transcoder: take a step, now and then look at held-out tokens or write a checkpoint."""

import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from transcoders.activations.reader import Batch, ShuffledReader
from transcoders.core.devices import is_out_of_memory, matmul_precision, multiplies_float32_in_bf16
from transcoders.core.errors import UserError
from transcoders.dictionary.transcoder import PER_LATENT, Transcoder
from transcoders.distributed.ranks import ALONE, Ranks
from transcoders.kernels import SparseLatents
from transcoders.kernels.auxiliary import variance_of
from transcoders.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from transcoders.training.objective import Objective
from transcoders.training.optimiser import MOMENTS, Adam, Projection
from transcoders.training.phases import Stage, plan
from transcoders.training.schedule import learning_rate
from transcoders.training.settings import TrainSettings, VariantSettings
from transcoders.training.sliced.assemble import write_slice_by_slice
from transcoders.training.sliced.transcoder import SlicedTranscoder
from transcoders.training.start import Statistics, initialise_

log = logging.getLogger(__name__)
HISTORY = (
    "step", "tokens", "epoch", "stage", "latents", "loss", "nmse", "aux_loss", "l0", "l1", "dead_fraction",
    "learning_rate", "gradient_norm", "validation_nmse",
)  # fmt: skip
SUMMED = ("loss", "nmse", "aux_loss", "l0", "l1", "gradient_norm")
SMALLEST_MICRO_BATCH = 16


class Result(NamedTuple):
    """What a finished run leaves, besides the model itself (its last weights)."""

    history: list[dict[str, Any]]
    """Rows with the keys ``HISTORY``; validation_nmse is None except where it was measured."""
    best_weights: dict[str, Tensor]
    best_step: int
    best_nmse: float
    seconds: float
    """Of training, interruptions not counted."""
    seconds_waited: float
    """Of these, for data."""


class Start(NamedTuple):
    """What latents are initialised from: statistics of the activations and a raw sample of them."""

    statistics: Statistics
    sample: Batch
    seed: int


class _Gradients(NamedTuple):
    """What a batch's backward passes leave beside the gradients."""

    loss: Tensor
    nmse: Tensor
    aux: Tensor
    l1: Tensor
    latents: list[SparseLatents]
    base_l0: Tensor


class Trainer:
    """The state of one run, its steps and its checkpoints.

    A run is a list of stages (one, unless it is progressive). A stage trains ``part``, which shares
    the weights of ``model``, on what ``base``, the frozen earlier latents, leave of y.
    """

    def __init__(
        self, model: Transcoder, reader: ShuffledReader, settings: TrainSettings, variant: VariantSettings,
        start: Start, validation: list[Batch], checkpoint: Path, ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        """With several ``ranks``, ``reader`` gives this rank's share of each batch."""
        self.ranks = ranks
        self.model, self.reader, self.settings, self.variant = model, reader, settings, variant
        self.start, self.validation, self._path = start, validation, checkpoint
        if settings.batch_size < ranks.data.size:
            raise UserError(f"train.batch_size: {settings.batch_size} is less than the {ranks.data.size} processes")
        if not reader.batches_per_epoch:
            raise UserError(
                f"train.batch_size: {settings.batch_size} is more than the {reader.tokens} tokens "
                "of the training documents; lower it or raise collect.tokens"
            )
        self.steps = settings.epochs * reader.batches_per_epoch
        try:
            self.stages = plan(model.config, variant, self.steps)
        except ValueError as error:
            raise UserError(f"train.epochs: {error}; raise it, or collect.tokens, or lower train.batch_size") from None
        if ranks.latents.size > 1 and (settings.selection == "bucketed" or variant.orthogonality == "projection"):
            raise UserError(
                "distributed.latents: slices go with train.selection: exact, and not with orthogonality: projection; "
                "set it to 1, or change these"
            )
        device = model.W_enc.device
        self.step = 0
        self.since_fired = torch.zeros(model.config.d_hidden, dtype=torch.long, device=device)
        self.sums = torch.zeros(len(SUMMED), dtype=torch.float64, device=device)
        self.history: list[dict[str, Any]] = []
        self.best_weights: dict[str, Tensor] = {}
        self.best_step, self.best_nmse = 0, float("inf")
        self.seconds = self.seconds_waited = 0.0
        self.micro_batch_size = min(settings.micro_batch_size or settings.batch_size, settings.batch_size)
        self.bf16 = settings.precision == "bf16" or (settings.precision == "auto" and model.W_enc.is_cuda)
        if self.bf16 and device.type == "cpu" and not multiplies_float32_in_bf16():
            log.warning("train.precision: bf16 needs a CPU with AMX; here it changes AuxK alone")
        self._enter(self.stages[0])

    def begin(self) -> None:
        """Continue from the checkpoint if there is one that fits, else start anew."""
        if not self._resume():
            self._initialise()

    def take(self, batch: Batch) -> bool:
        """The next step, on a batch in normalised units; says whether it ended with a validation."""
        before, began = self.seconds, time.perf_counter()
        settings = self.settings
        self._next_stage()
        rate = self._step(batch)
        self.step += 1
        last = self.step == self.steps
        validate = self.step % settings.validate_every == 0 or self.step == self.stage.last_step
        if self.step % settings.log_every == 0 or validate:
            self._log(rate)
        if validate:
            self._validate()
        self.seconds = before + time.perf_counter() - began
        if self.step % settings.checkpoint_every == 0 or last:
            self._save()
            self.seconds = before + time.perf_counter() - began
        return validate

    def result(self) -> Result:
        """Of a finished run."""
        return Result(
            self.history, self.best_weights, self.best_step, self.best_nmse, self.seconds, self.seconds_waited
        )  # fmt: skip

    def forget(self) -> None:
        """Delete the checkpoint: the run's outcome is safe elsewhere."""
        if self.ranks.first:
            self._path.unlink(missing_ok=True)

    def _next_stage(self) -> None:
        for stage in self.stages[1:]:
            if stage.first_step == self.step:
                log.info("stage %d of %d: latents %d to %d", stage.number, len(self.stages), stage.new, stage.stop)
                self._enter(stage)
                self._initialise()

    def _enter(self, stage: Stage) -> None:
        """Make the parts of the model that the stage works on."""
        self.stage = stage
        first = stage.new if stage.frozen else 0
        self.base = self.model.part(0, first) if first else None
        self.part = self.model.part(first, stage.stop)
        fixed = {"threshold"} if self.variant.encoder == "batchtopk" else set()
        fixed |= {"b_dec"} if stage.frozen else set()
        for name, parameter in self.part.named_parameters():
            parameter.requires_grad_(name not in fixed)
        self.objective = Objective(self.part, self.settings, self.variant, self.ranks)
        self.optimiser = Adam(self.part, slow_rows=stage.new - first, slow_rate=self.variant.previous_lr_scale)
        self.projection = None
        if self.variant.orthogonality == "projection" and self.base is not None:
            self.projection = Projection(self.part, self.base, self.variant.orthogonality_neighbours)

    @torch.no_grad()
    def _initialise(self) -> None:
        """Start the stage's new latents; a joint finish has none."""
        stage, (statistics, sample, seed) = self.stage, self.start
        if stage.number > 1 and not stage.new:
            return
        if stage.new:
            earlier = self.model.truncate(stage.new)
            sample = Batch(
                sample.x, sample.y - torch.cat([earlier(x.to(earlier.W_enc)).cpu() for x in sample.x.split(8192)])
            )
            statistics = statistics._replace(y_mean=torch.zeros_like(statistics.y_mean))
        new = self.model.part(stage.new, stage.stop)
        initialise_(new, statistics, sample, seed + 1000 * (stage.number - 1), decoder=self.variant.new_latents)
        for weights in self.model.state_dict().values():
            self.ranks.data.broadcast_(weights)

    def _step(self, batch: Batch) -> float:
        settings, stage = self.settings, self.stage
        local = self.step - stage.first_step
        rate = learning_rate(local, stage.steps, settings.learning_rate, settings.warmup, settings.decay)
        x, y = batch
        dead = (self.since_fired[self._trained] > settings.dead_after_tokens).nonzero().flatten()
        with matmul_precision(x.device, bf16=self.bf16):
            found = self._backward_that_fits(x, y, dead)
        norm = self.optimiser.step_(local + 1, rate, settings.gradient_clip)
        with torch.no_grad():
            if self.projection is not None:
                self.projection.apply_(local)
            if self.variant.encoder == "jumprelu":
                self.part.threshold.clamp_(min=0)
            self.part.b_enc[dead] += settings.dead_boost
        self._count(found, norm)
        return rate

    @property
    def _trained(self) -> slice:
        return slice(self.stage.new if self.stage.frozen else 0, self.stage.stop)

    def _backward_that_fits(self, x: Tensor, y: Tensor, dead: Tensor) -> _Gradients:
        """Gradients of a batch, in micro-batches that are halved until memory suffices."""
        while True:
            self.part.zero_grad()
            try:
                return self._backward(x, y, dead)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.ranks.world.size > 1:
                    raise UserError(
                        f"train.micro_batch_size: out of memory with {min(len(x), self.micro_batch_size)} tokens at a "
                        "time; lower it, or train.d_hidden, or raise distributed.latents"
                    ) from None
                if self.micro_batch_size < 2 * SMALLEST_MICRO_BATCH:
                    raise UserError(
                        f"train.d_hidden: out of memory even with {self.micro_batch_size} tokens at a time; "
                        "lower train.d_hidden, or take a larger device"
                    ) from None
            self.micro_batch_size //= 2
            log.warning("out of memory: %d tokens at a time from here on, same result", self.micro_batch_size)

    def _backward(self, x: Tensor, y: Tensor, dead: Tensor) -> _Gradients:
        objective, settings, tokens = self.objective, self.settings, self.settings.batch_size
        xs, ys = x.split(self.micro_batch_size), list(y.split(self.micro_batch_size))
        base_l0 = x.new_zeros(())
        if self.base is not None:
            with torch.no_grad():
                for i, part in enumerate(xs):
                    latents = self.base.encode_normalised(part, settings.backend)
                    ys[i] = ys[i] - self.base.decode_normalised(latents, part, settings.backend)
                    base_l0 += (latents.values > 0).sum() / tokens
        bound = objective.batch_bound(list(xs))
        sums = [x.new_zeros(()) for _ in range(4)]
        residuals, latents_of = [], []
        with_aux = bool(settings.aux_coefficient and self.ranks.latents.total(len(dead), x.device))
        for x_part, y_part in zip(xs, ys, strict=True):
            share = len(x_part) / tokens
            losses = objective.losses(x_part, y_part, bound, self._generator(0), dead if with_aux else None)
            (share * losses.total).backward()
            for i, value in enumerate((losses.total.detach(), losses.nmse, losses.l1)):
                sums[i] += share * value
            residuals.append(losses.residual)
            latents_of.append(losses.latents._replace(values=losses.latents.values.detach()))
        loss, nmse, l1, aux = sums
        if with_aux:
            variance = self._variance(torch.cat(residuals))
            at, every = self.ranks.data.share(tokens).start, settings.aux_every
            for x_part, residual, latents in zip(xs, residuals, latents_of, strict=True):
                seen = slice(-at % every, None, every)
                at += len(x_part)
                watched = None if latents.watched is None else latents.watched[seen]
                if len(x_seen := x_part[seen].contiguous()):
                    value = objective.aux(x_seen, residual[seen].contiguous(), dead, variance, watched)
                    value = value * (len(x_seen) / -(-tokens // every))
                    (settings.aux_coefficient * value).backward()
                    aux += value.detach()
            loss = loss + settings.aux_coefficient * aux
        together = self.ranks.data.add_gradients_(list(self.part.parameters()), torch.stack([loss, nmse, aux, l1]))
        loss, nmse, aux, l1 = together.unbind()
        penalty = objective.orthogonality(self._generator(1), self.base)
        if penalty is not None:
            penalty.backward()
            loss = loss + penalty.detach()
        return _Gradients(loss, nmse, aux, l1, latents_of, base_l0)

    def _variance(self, residual: Tensor) -> Tensor:
        """Of the whole batch's residual."""
        if self.ranks.data.size == 1:
            return variance_of(residual)
        tokens = self.settings.batch_size
        mean = self.ranks.data.sum_(residual.sum(0)) / tokens
        return self.ranks.data.sum_((residual - mean).square().sum()) / (tokens * residual.shape[1])

    def _generator(self, purpose: int) -> torch.Generator:
        """For this step's random choices: the same after a resume, and for every micro-batch."""
        return torch.Generator().manual_seed((self.start.seed * 1_000_003 + self.step) * 2 + purpose)

    @torch.no_grad()
    def _count(self, found: _Gradients, norm: Tensor) -> None:
        tokens = self.settings.batch_size
        self.since_fired += tokens
        own = self.since_fired[self._trained]
        l0 = found.loss.new_zeros(())
        has_fired = torch.zeros(len(own) + 1, dtype=torch.bool, device=own.device)
        for latents in found.latents:
            fired = latents.values > 0
            # Entries that did not fire mark the row too many: to take them out, the GPU would have to be waited for.
            has_fired.index_fill_(0, torch.where(fired, latents.indices.long(), len(own)), True)
            l0 += fired.sum() / tokens
        own.masked_fill_(has_fired[:-1], 0)
        self.ranks.data.min_(self.since_fired)
        l0, base_l0 = self.ranks.world.sum_(torch.stack([l0, found.base_l0]))
        self.objective.after_step(found.latents, l0)
        values = [found.loss, found.nmse, found.aux, l0 + base_l0, found.l1, norm]
        self.sums += torch.stack([value.double() for value in values])

    def _log(self, rate: float) -> None:
        settings = self.settings
        since = self.history[-1]["step"] if self.history else 0
        means = (self.sums / (self.step - since)).tolist()
        self.sums.zero_()
        row: dict[str, Any] = dict(zip(SUMMED, means, strict=True))
        if not row["loss"] < float("inf"):
            raise UserError(
                f"train.learning_rate: the loss is {row['loss']} at step {self.step}; lower the "
                f"learning rate (now {settings.learning_rate:g}), or check metrics/collect.json"
            )
        trained = self.since_fired[: self.stage.stop]
        dead = (trained > settings.dead_after_tokens).float().mean()
        latents = self.ranks.latents.total(self.stage.stop, trained.device)
        dead = self.ranks.latents.sum_(dead * (self.stage.stop / latents))
        row |= {
            "step": self.step, "tokens": self.step * settings.batch_size,
            "epoch": (self.step - 1) // self.reader.batches_per_epoch,
            "stage": self.stage.number, "latents": latents,
            "dead_fraction": float(dead), "learning_rate": rate, "validation_nmse": None,
        }  # fmt: skip
        self.history.append({key: row[key] for key in HISTORY})

    @torch.no_grad()
    def _validate(self) -> None:
        """Validation error of the latents so far; the best weights are sought in the last stage."""
        config, model = self.model.config, self.model.part(0, self.stage.stop)
        total, tokens = 0.0, 0
        for x, y in self._own_validation():
            total += float((model(x) - y).double().square().sum())
            tokens += len(x)
        if self.ranks.data.size > 1:
            sums = self.ranks.data.sum_(torch.tensor([total, tokens], dtype=torch.float64, device=self.sums.device))
            total, tokens = float(sums[0]), int(sums[1])
        nmse = total / tokens / config.d_out / config.output_scale**2
        self.history[-1]["validation_nmse"] = nmse
        if self.stage.number == len(self.stages) and nmse < self.best_nmse:
            self.best_weights = {name: value.clone() for name, value in self.model.state_dict().items()}
            self.best_step, self.best_nmse = self.step, nmse

    def _own_validation(self) -> list[Batch]:
        own = [(batch, self.ranks.data.share(len(batch.x))) for batch in self.validation]
        return [Batch(batch.x[rows], batch.y[rows]) for batch, rows in own if rows.start < rows.stop]

    def _save(self) -> None:
        tensors = {"since_fired": self.since_fired, "sums": self.sums, "pressure": self.objective.pressure}
        tensors |= {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= self.optimiser.state()
        if self.projection is not None:
            tensors["neighbours"] = self.projection.neighbours
        tensors |= {f"best.{name}": value for name, value in self.best_weights.items()}
        values = {
            "step": self.step, "history": self.history, "stage": self.stage.number,
            "best_step": self.best_step, "best_nmse": self.best_nmse, "micro_batch_size": self.micro_batch_size,
            "seconds": self.seconds, "seconds_waited": self.seconds_waited,
        }  # fmt: skip
        if isinstance(self.model, SlicedTranscoder):
            if self.ranks.data.rank == 0:
                path = self._path if self.ranks.first else None
                metadata = {"values": json.dumps(values)}
                tensors = {name: value.detach() for name, value in tensors.items()}
                write_slice_by_slice(path, tensors, self._owners(tensors), self.model.team, metadata)
        elif self.ranks.first:
            save_checkpoint(self._path, Checkpoint(tensors, values))

    def _owners(self, names: Iterable[str]) -> dict[str, SlicedTranscoder]:
        """Of a sliced run's checkpoint: the tensors with a row for each latent, and whose latents these are."""
        owners = {name: self.part if name.startswith(MOMENTS) else self.model for name in names}
        per_latent = (*PER_LATENT, "since_fired")
        return {
            name: owner
            for name, owner in owners.items()
            if isinstance(owner, SlicedTranscoder) and name.split(".")[-1] in per_latent
        }

    @torch.no_grad()
    def _resume(self) -> bool:
        found = load_checkpoint(self._path)
        step = torch.tensor(found.values["step"] if found else -1, device=self.sums.device)
        if int(self.ranks.world.min_(step.clone())) != int(step) or -int(self.ranks.world.min_(-step)) != int(step):
            raise UserError(
                f"{self._path}: not every process sees the same checkpoint; all hosts must share the folder "
                "(set XDG_CACHE_HOME to one)"
            )
        if found is None:
            return False
        self._enter(self.stages[found.values["stage"] - 1])
        device = self.model.W_enc.device
        owners = self._owners(found.tensors)
        tensors = {
            name: (owners[name].own(value) if name in owners else value).to(device)
            for name, value in found.tensors.items()
        }
        for name, parameter in self.model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
        self.optimiser.load_(tensors)
        self.objective.pressure = tensors["pressure"]
        if self.projection is not None:
            self.projection.neighbours = tensors["neighbours"]
        self.since_fired, self.sums = tensors["since_fired"], tensors["sums"]
        for name in ("step", "history", "best_step", "best_nmse", "micro_batch_size", "seconds", "seconds_waited"):
            setattr(self, name, found.values[name])
        self.best_weights = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
        log.info("continuing at step %d of %d", self.step, self.steps)
        return True
