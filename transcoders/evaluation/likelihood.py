"""How a model predicts the next tokens with and without a replacement, from final states, a block of logits at a time.

All logits of Gemma's vocabulary are 1 MB a token; a block of them stays in the processor's cache until it is summed.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transcoders.core.devices import matmul_precision
from transcoders.language.head import Head

ROWS, BLOCK = 512, 2048
"""Tokens and entries of the vocabulary whose logits are held at once: 4 MB a run."""

CLEAN = "clean"
"""The name of the clean run among others."""

States = Float[Tensor, "tokens d_model"]


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
    log_total: Float[Tensor, "tokens"]
    """Logarithm of the sum of the exponentials of all logits."""
    choice: Int[Tensor, "tokens"]
    """The likeliest token."""
    target: Int[Tensor, "tokens"]
    """The token that comes next."""

    def rows(self, rows: slice) -> "Reference":
        """Return the same of some tokens."""
        return Reference(*(values[rows] for values in self))


class _Sums:
    """Gather what is asked of a run's logits, block by block."""

    def __init__(self, ids: Int[Tensor, "tokens asked"]) -> None:
        self.ids = ids
        self.logits = torch.zeros(ids.shape, device=ids.device)
        """Those of ``ids``."""
        self.largest = torch.full((len(ids),), -torch.inf, device=ids.device)
        self.log_total = self.largest.clone()

    def add_(self, logits: Float[Tensor, "tokens block"], start: int) -> None:
        """Add the logits of the vocabulary from ``start`` on."""
        largest = logits.amax(1)
        total = (logits - largest[:, None]).exp_().sum(1).log_().add_(largest)
        self.log_total = torch.logaddexp(self.log_total, total)
        self.largest = torch.maximum(self.largest, largest)
        place = self.ids - start
        inside = (place >= 0) & (place < logits.shape[1])
        self.logits = torch.where(inside, logits.gather(1, place.clamp(0, logits.shape[1] - 1)), self.logits)


def _blocks(head: Head) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, len(head.weight), BLOCK)]


@torch.inference_mode()
def reference(head: Head, states: States, target: Int[Tensor, "tokens"], *, bf16: bool = False) -> Reference:
    """Return the predictions of a clean run that ends in ``states``.

    ``bf16`` lets the head's matrix products be in bfloat16, accumulated in float32.
    """
    log_total, choice = torch.empty(len(target), device=target.device), torch.zeros_like(target)
    with matmul_precision(target.device, bf16=bf16):
        for start in range(0, len(target), ROWS):
            rows = slice(start, start + ROWS)
            sums, likeliest = _Sums(target[rows, None]), choice[rows]
            for block in _blocks(head):
                logits = head.logits(states[rows], block)
                value, place = logits.max(1)
                likeliest = torch.where(value > sums.largest, place + block.start, likeliest)
                sums.add_(logits, block.start)
            log_total[rows], choice[rows] = sums.log_total, likeliest
    return Reference(states, log_total, choice, target)


@torch.inference_mode()
def compare(head: Head, clean: Reference, runs: Mapping[str, States], *, bf16: bool = False) -> dict[str, Likelihood]:
    """Return how each of ``runs``, given by their final states, predicts; ``clean`` is among the results, as CLEAN."""
    parts = []
    with matmul_precision(clean.target.device, bf16=bf16):
        for start in range(0, len(clean.target), ROWS):
            rows = slice(start, start + ROWS)
            parts.append(_compare_rows(head, clean.rows(rows), {name: states[rows] for name, states in runs.items()}))
    return {name: Likelihood(*map(torch.cat, zip(*(part[name] for part in parts), strict=True))) for name in parts[0]}


def _compare_rows(head: Head, clean: Reference, runs: Mapping[str, States]) -> dict[str, Likelihood]:
    ids = torch.stack([clean.target, clean.choice], dim=1)
    sums = {name: _Sums(ids) for name in (CLEAN, *runs)}
    mass = torch.zeros_like(clean.log_total)  # 1, but for the rounding of products in other blocks or on other devices
    excess = {name: torch.zeros_like(mass) for name in runs}
    """Of the clean run's logits over the run's, summed with the clean run's probabilities."""
    for block in _blocks(head):
        own = head.logits(clean.states, block)
        sums[CLEAN].add_(own, block.start)
        p = (own - clean.log_total[:, None]).exp_()
        mass += p.sum(1)
        for name, states in runs.items():
            logits = head.logits(states, block)
            sums[name].add_(logits, block.start)
            excess[name] += torch.linalg.vecdot(p, own - logits)
    result = {}
    for name, run in sums.items():
        kl = excess[name] / mass + run.log_total - sums[CLEAN].log_total if name in runs else torch.zeros_like(mass)
        result[name] = Likelihood(run.log_total - run.logits[:, 0], kl, (run.logits[:, 1] == run.largest).float())
    return result
