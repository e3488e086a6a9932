"""The history of a run: a row every so many steps, and the best weights so far."""

from typing import Any

import torch
from torch import Tensor

from transcoders.activations.reader import Batch
from transcoders.core.errors import UserError
from transcoders.dictionary.dictionary import Dictionary
from transcoders.training.phases import PhasePlan
from transcoders.training.settings import TrainSettings
from transcoders.training.sharing import Processes, Sharing
from transcoders.training.state import State
from transcoders.training.step import SUMMED

COLUMNS = (
    "step",
    "tokens",
    "epoch",
    "phase",
    "latents",
    "loss",
    "nmse",
    "aux_loss",
    "l0",
    "l1",
    "dead_fraction",
    "learning_rate",
    "gradient_norm",
    "validation_nmse",
)


class History:
    """Collect rows with the keys ``COLUMNS``; validation_nmse is None except where it was measured."""

    def __init__(self, settings: TrainSettings, batches_per_epoch: int, sharing: Sharing) -> None:
        """Begin without rows."""
        self.rows: list[dict[str, Any]] = []
        self._settings, self._batches_per_epoch, self._sharing = settings, batches_per_epoch, sharing

    def add(self, state: State, plan: PhasePlan, rate: float) -> None:
        """Add a row on the steps since the last one.

        Raises:
            UserError: the loss is no number any more.
        """
        since = self.rows[-1]["step"] if self.rows else 0
        means = (state.sums / (state.step - since)).tolist()
        state.sums.zero_()
        row: dict[str, Any] = dict(zip(SUMMED, means, strict=True))
        if not row["loss"] < float("inf"):
            raise UserError(
                f"train.learning_rate: the loss is {row['loss']} at step {state.step}; lower the "
                f"learning rate (now {self._settings.learning_rate:g}), or check data/collect.json"
            )
        so_far = state.since_fired[: plan.stop]
        latents = self._sharing.total(plan.stop, so_far.device)
        dead = (so_far > self._settings.dead_after_tokens).float().mean()
        row |= {
            "step": state.step,
            "tokens": state.step * self._settings.batch_size,
            "epoch": (state.step - 1) // self._batches_per_epoch,
            "phase": plan.number,
            "latents": latents,
            "dead_fraction": float(self._sharing.sum_(dead * (plan.stop / latents))),
            "learning_rate": rate,
            "validation_nmse": None,
        }
        self.rows.append({key: row[key] for key in COLUMNS})

    def state_dict(self) -> dict[str, Any]:
        """Return the rows."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the rows."""
        self.rows = state["rows"]


def metrics_of(rows: list[dict[str, Any]], best_step: int, best_nmse: float) -> dict[str, float]:
    """Return the figures of a finished run, and the validation error at the end of each phase where there are many."""
    last = rows[-1]
    metrics = {
        "best_validation_nmse": best_nmse,
        "best_step": best_step,
        "final_validation_nmse": last["validation_nmse"],
        "final_train_nmse": last["nmse"],
        "l0": last["l0"],
        "dead_fraction": last["dead_fraction"],
        "steps": last["step"],
        "tokens": last["tokens"],
    }
    ends = {row["phase"]: row["validation_nmse"] for row in rows}
    return metrics | ({f"phase_{n}.validation_nmse": nmse for n, nmse in ends.items()} if len(ends) > 1 else {})


class Best:
    """Hold the weights with the lowest validation error, sought in the last phase."""

    def __init__(self) -> None:
        """Begin with none."""
        self.weights: dict[str, Tensor] = {}
        self.step, self.nmse = 0, float("inf")

    def offer(self, model: Dictionary, step: int, nmse: float) -> None:
        """Keep a copy of the weights of ``model`` if their error ``nmse`` is the lowest so far."""
        if nmse < self.nmse:
            self.weights = {name: value.clone() for name, value in model.state_dict().items()}
            self.step, self.nmse = step, nmse

    def state_dict(self) -> dict[str, Any]:
        """Return everything."""
        return {**self.weights, "step": self.step, "nmse": self.nmse}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave."""
        self.step, self.nmse = state["step"], state["nmse"]
        self.weights = {name: value for name, value in state.items() if isinstance(value, Tensor)}


@torch.no_grad()
def validation_nmse(model: Dictionary, batches: list[Batch], data: Processes) -> float:
    """Return the mean squared error on ``batches``, which are divided among ``data``, in normalised units."""
    total, tokens = 0.0, 0
    for batch in batches:
        rows = data.share(len(batch.x))
        if rows.start < rows.stop:
            x, y = batch.x[rows], batch.y[rows]
            total += model.squared_error(x, y)
            tokens += len(x)
    if data.size > 1:
        sums = data.sum_(torch.tensor([total, tokens], dtype=torch.float64, device=model.b_dec.device))
        total, tokens = float(sums[0]), int(sums[1])
    return total / tokens / model.width
