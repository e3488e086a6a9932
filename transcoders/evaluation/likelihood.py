"""How a model predicts the next tokens with and without a replacement, from final states, a block of logits at a time.

All logits of Gemma's vocabulary are 1 MB a token; a block of them stays in the processor's cache until it is summed.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transcoders.core.devices import matmul_precision, multiplies_float32_in_bf16
from transcoders.evaluation.settings import Precision
from transcoders.language.head import Head

ROWS, BLOCK = 512, 1024
"""Tokens and entries of the vocabulary whose logits are held at once: 2 MB."""

States = Float[Tensor, "tokens d_model"]


def takes_bf16(precision: Precision, device: torch.device) -> bool:
    """Return whether logits are products in bfloat16, accumulated in float32: where a CPU has units for these (AMX)."""
    return precision == "auto" and device.type == "cpu" and multiplies_float32_in_bf16()


class Likelihood(NamedTuple):
    """Hold how a run predicts each next token, and how far it is from the clean run."""

    ce: Float[Tensor, "tokens"]
    """Minus the log-probability of the next token, nats."""
    kl: Float[Tensor, "tokens"]
    """KL(p_clean || p), nats."""
    agreement: Float[Tensor, "tokens"]
    """1 where the clean run's likeliest token is this run's too."""


class Reference(NamedTuple):
    """Hold what other runs are compared with: the clean run's predictions."""

    states: States
    target: Int[Tensor, "tokens"]
    """The token that comes next."""
    choice: Int[Tensor, "tokens"]
    """The likeliest token."""
    ce: Float[Tensor, "tokens"]
    """Minus the log-probability of ``target``, nats."""
    log_total: Float[Tensor, "tokens"]
    """Logarithm of the sum of the exponentials of all logits."""
    mean_row: States
    """Mean of the unembedding's rows under the predicted distribution."""

    def rows(self, rows: slice) -> "Reference":
        """Return the same of some tokens."""
        return Reference(*(values[rows] for values in self))

    def to(self, device: torch.device) -> "Reference":
        """Return the same on ``device``."""
        return Reference(*(values.to(device) for values in self))


class _Sums:
    """Gather what is asked of a run's logits, block by block; sums of exponentials are relative to the largest."""

    def __init__(self, ids: Int[Tensor, "tokens asked"]) -> None:
        self.ids = ids
        self.logits = torch.zeros(ids.shape, device=ids.device)
        """Those of ``ids``."""
        self.largest = torch.full((len(ids),), -torch.inf, device=ids.device)
        self.total = torch.zeros(len(ids), device=ids.device)

    def add_(self, logits: Float[Tensor, "tokens block"], start: int) -> Float[Tensor, "tokens"]:
        """Add the logits of the vocabulary from ``start`` on, and leave their exponentials in their place.

        Returns what former sums were multiplied with, because there is a larger logit now.
        """
        place = self.ids - start
        inside = (place >= 0) & (place < logits.shape[1])
        self.logits = torch.where(inside, logits.gather(1, place.clamp(0, logits.shape[1] - 1)), self.logits)
        largest = torch.maximum(self.largest, logits.amax(1))
        shrink = (self.largest - largest).exp_()
        self.total = self.total * shrink + logits.sub_(largest[:, None]).exp_().sum(1)
        self.largest = largest
        return shrink

    @property
    def log_total(self) -> Float[Tensor, "tokens"]:
        """Logarithm of the sum of the exponentials of all logits so far."""
        return self.largest + self.total.log()


def _blocks(head: Head, states: States) -> Iterator[tuple[slice, Float[Tensor, "tokens block"]]]:
    """Yield the logits of ``states``, a block of the vocabulary after the other, all in the same memory."""
    buffer = states.new_empty(len(states), BLOCK)
    for start in range(0, len(head.weight), BLOCK):
        block = slice(start, min(start + BLOCK, len(head.weight)))
        yield block, head.logits(states, block, out=buffer[:, : block.stop - start])


@torch.inference_mode()
def reference(head: Head, states: States, target: Int[Tensor, "tokens"], *, bf16: bool = False) -> Reference:
    """Return the predictions of a clean run that ends in ``states``.

    ``bf16`` lets the head's matrix products be in bfloat16, accumulated in float32.
    """
    parts = []
    with matmul_precision(target.device, bf16=bf16):
        for rows, ids in zip(states.split(ROWS), target.split(ROWS), strict=True):
            sums, choice, mean_row = _Sums(ids[:, None]), torch.zeros_like(ids), torch.zeros_like(rows)
            for block, logits in _blocks(head, rows):
                larger = logits.amax(1) > sums.largest
                choice[larger] = logits[larger].argmax(1) + block.start
                mean_row.mul_(sums.add_(logits, block.start)[:, None]).addmm_(logits, head.weight[block])
            ce = sums.log_total - sums.logits[:, 0]
            parts.append(Reference(rows, ids, choice, ce, sums.log_total, mean_row / sums.total[:, None]))
    return Reference(*map(torch.cat, zip(*parts, strict=True)))


@torch.inference_mode()
def compare(head: Head, clean: Reference, states: States, *, bf16: bool = False) -> Likelihood:
    """Return how a run that ends in ``states`` predicts, beside the clean run."""
    parts = []
    with matmul_precision(clean.target.device, bf16=bf16):
        for start in range(0, len(states), ROWS):
            rows = slice(start, start + ROWS)
            parts.append(_compare_rows(head, clean.rows(rows), states[rows]))
    return Likelihood(*map(torch.cat, zip(*parts, strict=True)))


def _compare_rows(head: Head, clean: Reference, states: States) -> Likelihood:
    sums = _Sums(torch.stack([clean.target, clean.choice], dim=1))
    for block, logits in _blocks(head, states):
        sums.add_(logits, block.start)
    # The mean under p_clean of the clean logits less the run's: logits are linear in the states but for a soft-cap.
    if head.cap is None:
        excess = head.scale * torch.linalg.vecdot(clean.mean_row, clean.states - states)
    else:
        excess = torch.zeros_like(sums.total)
        for (_, own), (_, logits) in zip(_blocks(head, clean.states), _blocks(head, states), strict=True):
            p = (own - clean.log_total[:, None]).exp_()
            excess += torch.linalg.vecdot(p, own - logits)
    kl = excess - clean.log_total + sums.log_total
    return Likelihood(sums.log_total - sums.logits[:, 0], kl, (sums.logits[:, 1] == sums.largest).float())
