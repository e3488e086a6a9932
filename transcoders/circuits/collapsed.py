"""The picture of a graph's groups: a box for each supernode, and what groups do to one another together."""

from collections.abc import Sequence
from html import escape

import torch
from torch import Tensor

from transcoders.circuits.graph import Graph, Pruned
from transcoders.circuits.picture import LEAST_SHARE, Edge, Node, output_node, svg_of, token_node, visible
from transcoders.circuits.supernodes import Supernode, main_position
from transcoders.circuits.viewer import Labels, node_id, output_id


def collapsed_picture(graph: Graph, pruned: Pruned, groups: Sequence[Supernode], words: Sequence[str]) -> str:
    """Return an SVG with a box for each group, at its members' middle layer and the position of most of them.

    A line is the mean over the members of its upper group, weighted with their influence, of what all members of the
    lower group do to them; errors are left out.
    """
    shown = [visible(word) for word in words]
    tokens = range(graph.embeddings.start, graph.embeddings.stop)
    sources = [(f"group_{i}", group.columns) for i, group in enumerate(groups)]
    sources += [(node_id(graph, column), [column]) for column in tokens]
    nodes = [_group_node(graph, pruned, i, group, shown) for i, group in enumerate(groups)]
    nodes += [token_node(graph, pruned, column, shown) for column in tokens]
    nodes += [output_node(graph, place, shown) for place in range(len(graph.outputs))]
    edges = []
    for place in range(len(graph.outputs)):
        edges += _edges(graph, output_id(graph, place), torch.tensor([place]), torch.ones(1), sources)
    for i, group in enumerate(groups):
        weights = pruned.influence[group.columns]
        edges += _edges(graph, f"group_{i}", graph.row_of[group.columns], weights / weights.sum(), sources)
    return svg_of(nodes, sorted(edges, key=lambda edge: abs(edge.share)), shown)


def _edges(
    graph: Graph, target: str, rows: Tensor, weights: Tensor, sources: Sequence[tuple[str, list[int]]]
) -> list[Edge]:
    """Return the lines into ``target``, whose members have ``rows`` and ``weights``."""
    of_rows = graph.effects[rows].cpu()
    effects = weights.to(of_rows) @ of_rows
    size = float(weights.to(of_rows) @ of_rows.abs().sum(1))
    edges = []
    for source, columns in sources:
        effect = float(effects[columns].sum())
        if source != target and abs(effect) >= LEAST_SHARE * size:
            edges.append(Edge(source, target, effect, effect / size))
    return edges


def _group_node(graph: Graph, pruned: Pruned, number: int, group: Supernode, words: Sequence[str]) -> Node:
    layers = sorted(int(graph.layer[column]) for column in group.columns)
    position = main_position(graph, group.columns)
    reach = float(pruned.influence[group.columns].sum())
    title = f"{group.name}: {len(layers)} latents of layers {layers[0]} to {layers[-1]}, influence {reach:.3f}"
    return Node(
        f"group_{number}", "group", layers[len(layers) // 2], position, group.name, f"{title}, {words[position]!r}"
    )


def group_lists(graph: Graph, groups: Sequence[Supernode], words: Sequence[str], labels: Labels) -> str:
    """Return HTML in which a click on a group's name, or on its box, opens the list of its latents."""
    parts = []
    for number, group in enumerate(groups):
        items = []
        for column in group.columns:
            layer, latent, position = graph.place(column)
            text = labels.get((layer, latent), "")
            items.append(f"<li>{layer} / {latent} at {escape(repr(words[position]))} {escape(text)}</li>")
        parts.append(
            f"<details id='group_{number}'><summary>{escape(group.name)}</summary><ul>{''.join(items)}</ul></details>"
        )
    return "\n".join(parts)
