"""Training one transcoder: read a batch, take a step, now and then look at held-out tokens."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from transcoders import kernels
from transcoders.activations.reader import Batch, ShuffledReader
from transcoders.dictionary.transcoder import Transcoder
from transcoders.errors import UserError
from transcoders.kernels import SparseLatents
from transcoders.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from transcoders.training.optimiser import Adam
from transcoders.training.schedule import learning_rate
from transcoders.training.settings import TrainSettings

log = logging.getLogger(__name__)
HISTORY = (
    "step", "tokens", "epoch", "loss", "nmse", "aux_loss", "l0", "l1", "dead_fraction",
    "learning_rate", "gradient_norm", "validation_nmse",
)  # fmt: skip
SUMMED = ("loss", "nmse", "aux_loss", "l0", "l1", "gradient_norm")


class Losses(NamedTuple):
    """One step's losses (normalised units) and the latents that made them."""

    total: Float[Tensor, ""]
    nmse: Float[Tensor, ""]
    aux: Float[Tensor, ""]
    l1: Float[Tensor, ""]
    latents: SparseLatents


class Result(NamedTuple):
    """What a finished run leaves, besides the model itself (its last weights)."""

    history: list[dict[str, Any]]
    """Rows with the keys ``HISTORY``; validation_nmse is None except where it was measured."""
    best_weights: dict[str, Tensor]
    best_step: int
    best_nmse: float


def compute_losses(
    model: Transcoder,
    x: Float[Tensor, "tokens d_in"],
    y: Float[Tensor, "tokens d_out"],
    dead: Tensor,
    settings: TrainSettings,
) -> Losses:
    """Losses of normalised ``x`` and ``y``: ``nmse + lambda L1 + aux_coefficient AuxK``.

    nmse is the mean squared error per dimension where mean ||y||^2 = d_out.
    """
    latents = model.encode_normalised(x, settings.backend)
    target = y - model.b_dec - (x @ model.W_skip.T if model.config.skip else 0.0)
    errors, residual = kernels.squared_errors(latents, model.W_dec, target, backend=settings.backend)
    nmse = errors.mean()
    l1 = latents.values.sum() / len(x)
    total = nmse
    if settings.lambda_sparsity:
        total = total + settings.lambda_sparsity * l1
    aux = nmse.new_zeros(())
    if settings.aux_coefficient and len(dead):
        aux = kernels.auxk(
            x, residual, model.W_enc, model.b_enc, model.W_dec, dead,
            min(model.config.d_out // 2, len(dead)), settings.backend,
        )  # fmt: skip
        total = total + settings.aux_coefficient * aux
    return Losses(total, nmse.detach(), aux.detach(), l1.detach(), latents)


class Trainer:
    """The state of one run, its steps and its checkpoints."""

    def __init__(
        self, model: Transcoder, reader: ShuffledReader, settings: TrainSettings,
        validation: list[Batch], checkpoint: Path,
    ) -> None:  # fmt: skip
        self.model, self.reader, self.settings = model, reader, settings
        self.validation, self._path = validation, checkpoint
        if not reader.batches_per_epoch:
            raise UserError(
                f"train.batch_size: {settings.batch_size} is more than the {reader.tokens} tokens "
                "of the training documents; lower it or raise collect.tokens"
            )
        self.steps = settings.epochs * reader.batches_per_epoch
        self.optimiser = Adam(model)
        device = model.W_enc.device
        self.step = 0
        self.since_fired = torch.zeros(model.config.d_hidden, dtype=torch.long, device=device)
        self.sums = torch.zeros(len(SUMMED), dtype=torch.float64, device=device)
        self.history: list[dict[str, Any]] = []
        self.best = Result(self.history, {}, 0, float("inf"))

    def run(self, on_history: Callable[[list[dict[str, Any]]], None]) -> Result:
        """Train to the end, continuing from the checkpoint if there is one that fits.

        ``on_history`` is called with the whole history whenever it grew by a validation.
        """
        self._resume()
        settings, per_epoch = self.settings, self.reader.batches_per_epoch
        bar = tqdm(
            desc="train", total=self.steps * settings.batch_size, unit="tok", unit_scale=True,
            initial=self.step * settings.batch_size,
        )  # fmt: skip
        with bar:
            for batch in self.reader.batches(self.step) if self.step < self.steps else ():
                rate = self._step(batch)
                self.step += 1
                last = self.step == self.steps
                validate = self.step % settings.validate_every == 0 or last
                if self.step % settings.log_every == 0 or validate:
                    row = self._log(rate, (self.step - 1) // per_epoch)
                    bar.set_postfix(loss=f"{row['loss']:.4f}", dead=f"{row['dead_fraction']:.1%}")
                if validate:
                    self._validate()
                    on_history(self.history)
                if self.step % settings.checkpoint_every == 0 and not last:
                    self._save()
                bar.update(len(batch.x))
                if last:
                    break
        self._path.unlink(missing_ok=True)
        return self.best._replace(history=self.history)

    def _step(self, batch: Batch) -> float:
        model, settings = self.model, self.settings
        rate = learning_rate(self.step, self.steps, settings.learning_rate, settings.warmup, settings.decay)
        x, y = batch.x / model.config.input_scale, batch.y / model.config.output_scale
        dead = (self.since_fired > settings.dead_after_tokens).nonzero().flatten()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._bf16):
            losses = compute_losses(model, x, y, dead, settings)
        model.zero_grad()
        losses.total.backward()
        norm = self.optimiser.step_(self.step + 1, rate, settings.gradient_clip)
        with torch.no_grad():
            model.b_enc[dead] += settings.dead_boost
        self._count(losses, norm, len(x))
        return rate

    @property
    def _bf16(self) -> bool:
        if self.settings.precision == "auto":
            return self.model.W_enc.is_cuda
        return self.settings.precision == "bf16"

    @torch.no_grad()
    def _count(self, losses: Losses, norm: Tensor, tokens: int) -> None:
        fired = losses.latents.values > 0
        self.since_fired += tokens
        self.since_fired[losses.latents.indices[fired].long()] = 0
        l0 = fired.sum() / tokens
        values = [losses.total.detach(), losses.nmse, losses.aux, l0, losses.l1, norm]
        self.sums += torch.stack([value.double() for value in values])

    def _log(self, rate: float, epoch: int) -> dict[str, Any]:
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
        dead = (self.since_fired > settings.dead_after_tokens).float().mean()
        row |= {
            "step": self.step, "tokens": self.step * settings.batch_size, "epoch": epoch,
            "dead_fraction": float(dead), "learning_rate": rate, "validation_nmse": None,
        }  # fmt: skip
        self.history.append({key: row[key] for key in HISTORY})
        return row

    @torch.no_grad()
    def _validate(self) -> None:
        config = self.model.config
        total, tokens = 0.0, 0
        for x, y in self.validation:
            total += float((self.model(x) - y).double().square().sum())
            tokens += len(x)
        nmse = total / tokens / config.d_out / config.output_scale**2
        self.history[-1]["validation_nmse"] = nmse
        if nmse < self.best.best_nmse:
            weights = {name: value.clone() for name, value in self.model.state_dict().items()}
            self.best = Result(self.history, weights, self.step, nmse)

    def _save(self) -> None:
        tensors = {"since_fired": self.since_fired, "sums": self.sums}
        tensors |= {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= self.optimiser.state()
        tensors |= {f"best.{name}": value for name, value in self.best.best_weights.items()}
        values = {
            "step": self.step, "history": self.history,
            "best_step": self.best.best_step, "best_nmse": self.best.best_nmse,
        }  # fmt: skip
        save_checkpoint(self._path, Checkpoint(tensors, values))

    @torch.no_grad()
    def _resume(self) -> None:
        found = load_checkpoint(self._path)
        if found is None:
            return
        device = self.model.W_enc.device
        tensors = {name: value.to(device) for name, value in found.tensors.items()}
        for name, parameter in self.model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
        self.optimiser.load_(tensors)
        self.since_fired, self.sums = tensors["since_fired"], tensors["sums"]
        self.step, self.history = found.values["step"], found.values["history"]
        weights = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
        self.best = Result(self.history, weights, found.values["best_step"], found.values["best_nmse"])
        log.info("continuing at step %d of %d", self.step, self.steps)
