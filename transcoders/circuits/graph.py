"""Attribution graphs: which node has how much direct effect on which; influence, pruning, scores.

Columns (sources): active latents, errors by layer and position, token embeddings. Rows (targets): the
outputs, then the traced latents. Definitions of influence, pruning and the two scores are those of
Ameisen et al. 2025, "Circuit Tracing", appendix on graph pruning.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ROWS_PER_CHUNK = 512


class Output(NamedTuple):
    """Describe a direction of the final state that is traced: a logit, or the difference of two."""

    label: str
    token: int
    weight: float
    probability: float


class Graph(NamedTuple):
    """Hold the direct effects of sources on targets, in units of the targets: pre-activations and logits."""

    tokens: Int[Tensor, "tokens"]
    layers: int
    layer: Int[Tensor, "active"]
    position: Int[Tensor, "active"]
    latent: Int[Tensor, "active"]
    value: Float[Tensor, "active"]
    outputs: list[Output]
    rows: Int[Tensor, "traced"]
    """The latents, as columns, that have a row, after the outputs' rows."""
    effects: Float[Tensor, "targets sources"]
    constant: Float[Tensor, "targets"]
    """What the decoders' biases upstream and the target's own bias add."""
    target: Float[Tensor, "targets"]
    """What all effects and the constant sum to, measured in the model: pre-activations and logits."""

    def place(self, column: int) -> tuple[int, int, int]:
        """Return the layer, id and position of an active latent."""
        return int(self.layer[column]), int(self.latent[column]), int(self.position[column])

    @property
    def row_of(self) -> Int[Tensor, "sources"]:
        """Return each column's row, -1 of those that are not traced."""
        result = self.rows.new_full((self.effects.shape[1],), -1)
        result[self.rows] = torch.arange(len(self.rows), device=self.rows.device) + len(self.outputs)
        return result

    @property
    def errors(self) -> slice:
        """Return the columns of the error nodes, position within layer."""
        return slice(len(self.layer), len(self.layer) + self.layers * len(self.tokens))

    @property
    def embeddings(self) -> slice:
        """Return the columns of the token embeddings."""
        return slice(self.errors.stop, self.errors.stop + len(self.tokens))

    @property
    def output_weights(self) -> Float[Tensor, "outputs"]:
        """Return the weight of each output in the influence."""
        return torch.tensor([output.weight for output in self.outputs]).to(self.effects)

    @property
    def latent_rows(self) -> slice:
        """Return the rows of the traced latents, after those of the outputs."""
        return slice(len(self.outputs), None)

    def sum_errors(self) -> Float[Tensor, "targets"]:
        """Return how far each target is from the sum of what reaches it, relative to the terms' root sum of squares."""
        total = self.effects.sum(1) + self.constant
        size = (self.effects.square().sum(1) + self.constant.square()).sqrt()
        return (total - self.target).abs() / torch.maximum(self.target.abs(), size)


class Pruned(NamedTuple):
    """Mark what is left of a graph: ``nodes`` over its columns, ``edges`` over its rows and columns."""

    nodes: Bool[Tensor, "sources"]
    edges: Bool[Tensor, "targets sources"]
    influence: Float[Tensor, "sources"]


class Scores(NamedTuple):
    """Tell how much of a graph goes through latents rather than through errors."""

    replacement: float
    """Share of the influence at the graph's ends that comes from tokens, not from errors."""
    completeness: float
    """Share of the nodes' inputs, weighted with the nodes' influence, that is not errors."""


def influence(graph: Graph, effects: Float[Tensor, "targets sources"] | None = None) -> Float[Tensor, "sources"]:
    """Return the influence of every source on the outputs over all paths: a geometric series of normalised |effects|.

    It ends: an effect always goes to a later layer.
    """
    effects = graph.effects if effects is None else effects
    total = effects.new_zeros(effects.shape[1])
    for arrived in _by_edges(graph, effects):
        total += arrived
    return total


def path_length(graph: Graph) -> float:
    """Return the mean number of edges of the paths from token embeddings to outputs, weighted by their influence.

    A path's influence is the product of the normalised |effects| along it, times its output's weight, so that all
    paths together carry the influence of the embeddings. Paths that begin at errors do not count, and none goes through
    a latent that was not traced. After Ameisen et al. 2025, "Circuit Tracing", where cross-layer transcoders had
    shorter paths than those of one layer each. NaN where no path leads from a token to an output.
    """
    carried = torch.stack([arrived[graph.embeddings].sum() for arrived in _by_edges(graph, graph.effects)])
    edges = torch.arange(1, len(carried) + 1).to(carried)
    return float((edges * carried).sum() / carried.sum())


def _by_edges(graph: Graph, effects: Float[Tensor, "targets sources"]) -> Iterator[Float[Tensor, "sources"]]:
    """Yield the influence of every source over the paths of one edge, then over those of two, and so on."""
    norm = effects.abs().sum(1).clamp(min=1e-20)
    step = torch.cat([graph.output_weights, effects.new_zeros(len(graph.rows))])
    while step.any():
        arrived = _times_absolute(step / norm, effects)
        yield arrived
        step = torch.cat([torch.zeros_like(graph.output_weights), arrived[graph.rows]])


def _times_absolute(weights: Tensor, effects: Tensor) -> Tensor:
    """Return ``weights @ |effects|`` without a second matrix as large."""
    total = effects.new_zeros(effects.shape[1])
    for start in range(0, len(weights), ROWS_PER_CHUNK):
        chunk = slice(start, start + ROWS_PER_CHUNK)
        if weights[chunk].any():
            total += weights[chunk] @ effects[chunk].abs()
    return total


def prune(graph: Graph, node_threshold: float, edge_threshold: float) -> Pruned:
    """Keep the nodes that carry ``node_threshold`` of the influence, and the edges with ``edge_threshold`` of theirs.

    Latents without a kept cause and nodes without a kept effect go too; tokens always stay.
    """
    reach = influence(graph)
    nodes = reach >= _at_share(reach, node_threshold)
    traced = torch.zeros_like(nodes)
    traced[graph.rows] = True
    active = slice(0, graph.errors.start)
    nodes[active] &= traced[active]
    nodes[graph.embeddings] = True
    left = graph.effects * nodes
    left[graph.latent_rows] *= nodes[graph.rows, None]
    through = torch.cat([graph.output_weights, influence(graph, left)[graph.rows]])
    scores = left.abs() * (through / left.abs().sum(1).clamp(min=1e-20))[:, None]
    edges = (scores >= _at_share(scores.flatten(), edge_threshold)) & (scores > 0)
    return Pruned(*_connected(graph, nodes, edges), reach)


def _connected(graph: Graph, nodes: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    count = -1
    while count != int(nodes.sum()):
        count = int(nodes.sum())
        has_cause = torch.ones_like(nodes)
        has_cause[graph.rows] = edges[graph.latent_rows].any(1)
        nodes = nodes & has_cause & edges.any(0)
        nodes[graph.embeddings] = True
        edges = edges & nodes
        edges[graph.latent_rows] &= nodes[graph.rows, None]
    return nodes, edges


def _at_share(scores: Tensor, share: float) -> Tensor:
    """Return the least score among the largest ones that make up ``share`` of the sum."""
    ordered = scores.sort(descending=True).values
    reached = ordered.cumsum(0) / ordered.sum()
    place = int(torch.searchsorted(reached, share))
    return ordered[min(place, len(ordered) - 1)]


def scores(graph: Graph, kept: Bool[Tensor, "sources"] | None = None) -> Scores:
    """Return the graph's replacement and completeness.

    Latents that were not traced, or that ``kept`` leaves out, count as errors.
    """
    reach = influence(graph)
    latents = torch.zeros_like(reach, dtype=torch.bool)
    latents[graph.rows] = True
    if kept is not None:
        latents &= kept
    unexplained = ~latents
    unexplained[graph.embeddings] = False
    tokens, errors = reach[graph.embeddings].sum(), reach[unexplained].sum()
    absolute = graph.effects.abs()
    explained = absolute[:, ~unexplained].sum(1) / absolute.sum(1).clamp(min=1e-20)
    through = torch.cat([graph.output_weights, reach[graph.rows] * latents[graph.rows]])
    return Scores(float(tokens / (tokens + errors)), float((explained * through).sum() / through.sum()))


def respond(graph: Graph, present: Bool[Tensor, "cases active"]) -> Float[Tensor, "cases outputs"]:
    """Return the linear model's outputs when only ``present`` latents are there and pass on what reaches them."""
    strength = graph.effects.new_ones(graph.effects.shape[1], len(present))
    strength[: present.shape[1]] = present.T.to(strength)
    layers = graph.layer[graph.rows]
    for layer in layers.unique():
        here = torch.nonzero(layers == layer)[:, 0]
        rows = here + len(graph.outputs)
        arrived = graph.effects[rows] @ strength + graph.constant[rows, None]
        strength[graph.rows[here]] *= arrived / graph.target[rows, None]
    outputs = slice(0, len(graph.outputs))
    return (graph.effects[outputs] @ strength + graph.constant[outputs, None]).T
