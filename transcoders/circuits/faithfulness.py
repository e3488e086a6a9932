"""Do the latents that a graph names bring the output about? Keep them, or remove them, and see.

Faithfulness after Marks et al. 2024, arXiv 2403.19647, section 4: the share of the output's distance
between all latents and none that a part of them makes up.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from transcoders.circuits.frozen import Frozen
from transcoders.circuits.graph import Graph, influence, respond
from transcoders.circuits.replacement import run_with_latents

SIZES = 24


class Curves(NamedTuple):
    """Hold the first output when the n most influential latents are kept or removed, and when n random ones are."""

    sizes: NDArray[np.int64]
    """0 first, all active latents last."""
    kept: NDArray[np.float64]
    removed: NDArray[np.float64]
    random_kept: NDArray[np.float64]
    random_removed: NDArray[np.float64]
    predicted_removed: NDArray[np.float64]
    """What the linear model predicts for ``removed``."""

    @property
    def faithfulness(self) -> NDArray[np.float64]:
        """Return the share of what all latents do that the kept ones do: 0 for none, 1 for all."""
        return (self.kept - self.kept[0]) / (self.kept[-1] - self.kept[0])

    @property
    def latents_matter(self) -> bool:
        """Say whether all latents together move the output by more than a twentieth of it; else shares mean nothing."""
        return bool(abs(self.kept[-1] - self.kept[0]) > 0.05 * abs(self.kept[-1]))

    @property
    def direction_agreement(self) -> float:
        """Return the share of sizes at which removing latents moves the output to the side that the graph predicts."""
        measured, predicted = self.removed[1:] - self.removed[0], self.predicted_removed[1:] - self.removed[0]
        return float(np.mean(np.sign(measured) == np.sign(predicted)))

    @property
    def drop(self) -> float:
        """Return the output lost with influential latents beyond that with as many random ones, mean over sizes."""
        by_all_latents = self.kept[-1] - self.kept[0]
        return float(np.mean((self.random_removed - self.removed)[1:-1]) / by_all_latents)

    def size_at(self, share: float) -> int:
        """Return the least number of latents from which on faithfulness stays at ``share`` or above."""
        below = np.flatnonzero(self.faithfulness < share)
        return int(self.sizes[below[-1] + 1]) if len(below) else 0


def curves(frozen: Frozen, directions: Float[Tensor, "1 d_model"], graph: Graph, seed: int) -> Curves:
    """Run the live model with ever more of the graph's latents kept, or removed."""
    active = len(graph.layer)
    sizes = np.unique(np.geomspace(1, active, SIZES).round().astype(np.int64))
    sizes = np.concatenate([[0], sizes])
    device = graph.layer.device
    best = influence(graph)[:active].argsort(descending=True)
    chance = torch.randperm(active, generator=torch.Generator().manual_seed(seed)).to(device)
    top, random = (first_of(order, sizes) for order in (best, chance))
    with torch.inference_mode():
        outputs = run_with_latents(frozen, directions, torch.cat([top, ~top, random, ~random]))[:, 0]
        predicted = respond(graph, ~top)[:, 0]
    kept, removed, random_kept, random_removed = outputs.double().cpu().numpy().reshape(4, -1)
    return Curves(sizes, kept, removed, random_kept, random_removed, predicted.double().cpu().numpy())


def first_of(order: Int[Tensor, "active"], sizes: NDArray[np.int64]) -> Bool[Tensor, "sizes active"]:
    """Return for each size the mask of that many first ones in ``order``."""
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return rank < torch.as_tensor(sizes, device=order.device)[:, None]
