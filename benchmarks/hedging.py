"""Hedging (arXiv 2505.11756): what do a dictionary's latents give up when features of their own join it?

A small dictionary is trained; it goes on twice on the same tokens, with new latents and without. What an old decoder
row changes beyond the control is hedging, as far as it lies in the span of the new rows: there the old latent
stood in for features that it did not have. Progressive training is this experiment, but for the control.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.measure import over_seeds
from benchmarks.quality import SEEDS, Task, train
from transcoders.training.settings import TrainSettings, VariantSettings

OLD, NEW, K = 1920, 128, 32
DRAWS = 50
SHARE = OLD / (OLD + NEW)
GROWS = VariantSettings(
    prefixes=(SHARE, 1.0),
    prefix_k=(SHARE, 1.0),
    prefix_weights=(0, 1),
    training="progressive",
    phase_fractions=(0.5, 0.5),
    previous_lr_scale=1.0,
)
"""The second half of the tokens trains all latents on the error of all."""
NESTED = GROWS.model_copy(update={"prefix_weights": (1, 3)})
"""As ``plt`` does: the old latents must do without the new ones too."""
CONTROL = VariantSettings(prefixes=(1.0,), prefix_k=(1.0,), training="progressive", joint_finish=0.5)
"""The second half begins anew as that of the others does, and no latent joins."""


def run(task: Task) -> list[str]:
    """Return a row for each way to go on."""
    ways = {"new latents": GROWS, "new latents, nested (PLT)": NESTED}
    results: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
    for seed in range(SEEDS):
        control = train(task, TrainSettings(d_hidden=OLD, k=GROWS.ks(K)[0]), CONTROL, seed).W_dec
        for way, variant in ways.items():
            grown = train(task, TrainSettings(d_hidden=OLD + NEW, k=K), variant, seed).W_dec
            results[way].append(hedging(grown[:OLD], control, grown[OLD:], seed))
    return [f"| {way} | {' | '.join(map(over_seeds, zip(*of, strict=True)))} |" for way, of in results.items()]


def hedging(
    old: Float[Tensor, "old d"], control: Float[Tensor, "old d"], new: Float[Tensor, "new d"], seed: int
) -> tuple[float, float, float]:
    """Return the mean length of an old row's change, its share in the span of the new rows, and how far beyond chance.

    Chance is the mean over ``DRAWS`` spans of as many rows of the control: decoder rows share directions, and so does
    whatever changes them.
    """
    change = old - control
    generator = torch.Generator().manual_seed(seed)
    inside = share_within(change, new)
    by_chance = [
        share_within(change, control[torch.randperm(len(control), generator=generator)[: len(new)]])
        for _ in range(DRAWS)
    ]
    return float(change.norm(dim=1).mean()), inside, inside - float(np.mean(by_chance))


def share_within(change: Float[Tensor, "rows d"], span: Float[Tensor, "new d"]) -> float:
    """Return the share of the squared length of ``change`` that lies in the span of some rows."""
    basis = torch.linalg.qr(span.T).Q
    return float((change @ basis).square().sum() / change.square().sum())
