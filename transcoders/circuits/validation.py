"""Is a graph right about the model? Its direct effects, and its influences beside what ablating a latent does."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from transcoders.circuits.attribution import Targets
from transcoders.circuits.frozen import Frozen
from transcoders.circuits.graph import Graph, influence
from transcoders.circuits.interventions import Intervention, Response, ablate, respond_to
from transcoders.circuits.settings import CircuitSettings
from transcoders.circuits.writers import Transcoders

ON_OUTPUTS, ON_LATENTS = (1e-5, 1e-3), (5e-4, 1e-5)
"""How far an effect may be from the graph's, absolutely and relative to it: circuit-tracer 0.5.0's own tests."""


class Ablations(NamedTuple):
    """Hold what was foretold of latents of a prompt, and the KL divergence of the model's prediction without each."""

    influence: NDArray[np.float64]
    direct_effect: NDArray[np.float64]
    """The size of the direct effect on the first output."""
    activation: NDArray[np.float64]
    """Their values times the norms of their decoder rows: what they write in size."""
    kl: NDArray[np.float64]
    """Nats, at the last position, nothing frozen."""

    def correlations(self) -> dict[str, float]:
        """Return Spearman's correlation of each forecast with the divergence; nothing of fewer than three latents."""
        if len(self.kl) < 3:
            return {}
        forecasts = {name: getattr(self, name) for name in ("influence", "direct_effect", "activation")}
        return {
            f"{name}_kl": float(stats.spearmanr(values, self.kl).statistic)
            for name, values in forecasts.items()
            if values.std() > 0 and self.kl.std() > 0
        }


def validate(
    frozen: Frozen, transcoders: Transcoders, targets: Targets, graph: Graph, settings: CircuitSettings
) -> dict[str, float]:
    """Return the metrics of ``settings.ablated`` latents drawn at random; none where it is 0."""
    columns = sample_latents(graph, settings.ablated, settings.seed)
    if not len(columns):
        return {}
    error = direct_effect_error(frozen, transcoders, targets, graph, columns)
    return {"direct_effect_error": error, **ablations(frozen, transcoders, graph, columns).correlations()}


def sample_latents(graph: Graph, count: int, seed: int) -> Int[Tensor, "sampled"]:
    """Return at most ``count`` random columns of latents whose own causes are traced, ascending."""
    order = torch.randperm(len(graph.rows), generator=torch.Generator().manual_seed(seed))[:count]
    return graph.rows[order.to(graph.rows.device)].sort().values


def direct_effect_error(
    frozen: Frozen, transcoders: Transcoders, targets: Targets, graph: Graph, columns: Int[Tensor, "sampled"]
) -> float:
    """Return how far the effects of doubling each latent, all else frozen, are from its column of the graph.

    The figure is the largest difference over all outputs and pre-activations, in units of what it may be
    (``ON_OUTPUTS``, ``ON_LATENTS``): below 1 the graph is right.
    """
    cases = [[Intervention(*graph.place(column), 2.0, "scale")] for column in columns.tolist()]
    run = respond_to(frozen, transcoders, cases, "all")
    outputs = (run.states[1:, -1] - run.states[0, -1]) @ targets.directions.T
    of_outputs, of_latents = graph.effects[:, columns].split([len(graph.outputs), len(graph.rows)])
    return max(
        _misses(outputs.T, of_outputs, *ON_OUTPUTS),
        _misses(_pre_activations(frozen, graph, run), of_latents, *ON_LATENTS),
    )


def _misses(measured: Tensor, expected: Tensor, absolute: float, relative: float) -> float:
    return float(((measured - expected).abs() / (absolute + relative * expected.abs())).max())


def _pre_activations(frozen: Frozen, graph: Graph, run: Response) -> Float[Tensor, "traced cases"]:
    """Return by how much each case changed the pre-activation of every traced latent."""
    result = graph.effects.new_zeros(len(graph.rows), len(run.states) - 1)
    for layer in graph.layer[graph.rows].unique().tolist():
        site = frozen.steps[layer].site
        assert site is not None
        here = torch.nonzero(graph.layer[graph.rows] == layer)[:, 0]
        chosen = graph.rows[here] - int((graph.layer < layer).sum())
        change = run.x[layer][1:] - run.x[layer][:1]
        result[here] = torch.einsum("cad,ad->ac", change[:, site.position[chosen]], site.encoder[chosen])
    return result


def ablations(frozen: Frozen, transcoders: Transcoders, graph: Graph, columns: Int[Tensor, "sampled"]) -> Ablations:
    """Ablate each latent alone, with nothing frozen, beside what the graph and its size foretell."""
    cases = [[ablate(*graph.place(column))] for column in columns.tolist()]
    kl = respond_to(frozen, transcoders, cases, "nothing").divergences(frozen.parts.head)[1:]
    written = [_written(frozen, layer) for layer in range(graph.layers)]
    size = graph.value * torch.cat([norms for norms in written if norms is not None])
    foretold = (influence(graph), graph.effects[0].abs(), size)
    reach, direct, activation = (forecast[columns].double().cpu().numpy() for forecast in foretold)
    return Ablations(reach, direct, activation, kl.double().cpu().numpy())


def _written(frozen: Frozen, layer: int) -> Float[Tensor, "active"] | None:
    """Return the norm of all decoder rows of each active latent of a layer, joined."""
    site = frozen.steps[layer].site
    if site is None:
        return None
    return torch.stack([site.decoder(target).square().sum(1) for target in site.padded_decoders]).sum(0).sqrt()
