"""What is left of the model's predictions with MLPs replaced: cross-entropy, KL and agreement, by document."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from transcoders.evaluation.bootstrap import interval
from transcoders.evaluation.likelihood import Likelihood
from transcoders.evaluation.settings import EvaluateSettings

CONTEXTS_PER_BATCH = 8


class ContextBatch(NamedTuple):
    """Hold contexts to run: BOS first, right-padded with 0; ``mask`` is False on padding."""

    tokens: Int[Tensor, "contexts length"]
    mask: Tensor
    document: Int[Tensor, "contexts"]

    @property
    def size(self) -> int:
        """The number of tokens that are predicted: all but BOS."""
        return int(self.mask[:, 1:].sum())

    @property
    def target(self) -> Int[Tensor, "tokens"]:
        """The tokens that are predicted, contexts one after the other."""
        return self.tokens[:, 1:][self.mask[:, 1:]]

    @property
    def owner(self) -> Int[Tensor, "tokens"]:
        """The document of each of these tokens."""
        return self.document.repeat_interleave(self.mask[:, 1:].sum(1))


class ModelLosses(NamedTuple):
    """Hold sums of each figure over the predicted tokens of each document, and the number of those tokens."""

    ce_clean: Float[Tensor, "documents"]
    ce: dict[str, Float[Tensor, "documents"]]
    kl: dict[str, Float[Tensor, "documents"]]
    agreement: dict[str, Float[Tensor, "documents"]]
    tokens: Float[Tensor, "documents"]

    def add_clean_(self, ce: Float[Tensor, "tokens"], batch: ContextBatch) -> None:
        """Add the clean run's cross-entropy at the predicted tokens of ``batch``, and count these."""
        self.ce_clean.index_add_(0, batch.owner, ce.double().cpu())
        self.tokens.index_add_(0, batch.owner, torch.ones(batch.size, dtype=torch.float64))

    def add_(self, name: str, run: Likelihood, batch: ContextBatch) -> None:
        """Add what the run ``name`` predicts of the tokens of ``batch``."""
        for sums, values in ((self.ce, run.ce), (self.kl, run.kl), (self.agreement, run.agreement)):
            sums[name].index_add_(0, batch.owner, values.double().cpu())


def context_batches(rows: list[NDArray[np.int64]], document: NDArray[np.int64], limit: int) -> list[ContextBatch]:
    """Return batches of the first contexts that hold ``limit`` tokens together (BOS not counted), short ones first.

    Contexts of one length have little padding: of short texts, the model would run on nearly twice their tokens.
    """
    count, left = 0, limit
    while count < len(rows) and left > 0:
        left -= len(rows[count]) - 1
        count += 1
    order = sorted(range(count), key=lambda number: len(rows[number]))
    return batches_of([rows[number] for number in order], document[order])


def batches_of(rows: list[NDArray[np.int64]], document: NDArray[np.int64]) -> list[ContextBatch]:
    """Return contexts, each with its document, in batches."""
    result = []
    for start in range(0, len(rows), CONTEXTS_PER_BATCH):
        part = [torch.as_tensor(np.array(row)).long() for row in rows[start : start + CONTEXTS_PER_BATCH]]
        padded = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
        lengths = torch.tensor([len(row) for row in part])
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        owner = torch.as_tensor(np.array(document[start : start + len(part)])).long()
        result.append(ContextBatch(padded, mask, owner))
    return result


def no_losses(names: list[str], documents: int) -> ModelLosses:
    """Return empty sums to add to, of the clean model and of replacements ``names``."""
    empty = torch.zeros(documents, dtype=torch.float64)
    ce, kl, agreement = ({name: empty.clone() for name in names} for _ in range(3))
    return ModelLosses(empty.clone(), ce, kl, agreement, empty.clone())


def loss_metrics(losses: ModelLosses, name: str, settings: EvaluateSettings) -> dict[str, float]:
    """Return ce_*, delta_ce, loss_recovered (with intervals), kl and top1_agreement of one replacement.

    ``losses`` must hold the replacements ``zero`` and ``mean`` too.
    """
    tokens = losses.tokens
    clean, zero, replaced = losses.ce_clean, losses.ce["zero"], losses.ce[name]
    total = float(tokens.sum())
    present = tokens > 0
    delta = interval(lambda w: np.asarray((w @ (replaced - clean)) / (w @ tokens)), present, settings)
    recovered = interval(lambda w: np.asarray((w @ (zero - replaced)) / (w @ (zero - clean))), present, settings)
    return {
        "loss_tokens": total,
        "ce_clean": float(clean.sum()) / total,
        "ce_replaced": float(replaced.sum()) / total,
        "ce_zero": float(zero.sum()) / total,
        "ce_mean": float(losses.ce["mean"].sum()) / total,
        "delta_ce": delta[0],
        "delta_ce_low": delta[1],
        "delta_ce_high": delta[2],
        "loss_recovered": recovered[0],
        "loss_recovered_low": recovered[1],
        "loss_recovered_high": recovered[2],
        "kl": float(losses.kl[name].sum()) / total,
        "top1_agreement": float(losses.agreement[name].sum()) / total,
    }
