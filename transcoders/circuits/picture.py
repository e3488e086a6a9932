"""The picture of a graph, as an SVG.

Layers go up, positions go right; blue raises what it points at, orange lowers it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from itertools import accumulate
from typing import NamedTuple

import torch

from transcoders.circuits.graph import Graph, Pruned
from transcoders.circuits.viewer import Labels, node_id, output_id

MOST_NODES = 40
"""Latents and errors that a picture has room for."""
WIDTH, HEIGHT, GAP, LEFT, ROW_GAP, COLUMN_GAP = 128, 20, 5, 54, 26, 14
NARROW = 66
"""Width of a position that has a token only."""
LETTER = 6.5
LEAST_SHARE = 0.01
"""Of what reaches a node: weaker lines would only be fog."""


class Node(NamedTuple):
    """Describe a box of the picture."""

    name: str
    kind: str
    row: int
    """-1 for tokens, the layer, one more for outputs."""
    position: int
    text: str
    title: str


class Edge(NamedTuple):
    """Describe a line of the picture; ``share`` is the effect over all absolute effects on its target."""

    source: str
    target: str
    effect: float
    share: float


class Place(NamedTuple):
    """Say where a box is."""

    x: float
    y: float
    width: int


class Picture(NamedTuple):
    """Hold an SVG, and how many of the pruned graph's latents and errors are in it."""

    svg: str
    drawn: int
    pruned: int


def picture(graph: Graph, pruned: Pruned, words: list[str], labels: Labels) -> Picture:
    """Draw the most influential nodes of ``graph`` that ``pruned`` holds; ``words`` are its tokens as text."""
    shown = [visible(word) for word in words]
    nodes, edges = _most_influential(graph, pruned, shown, labels)
    drawn = sum(node.kind in ("latent", "error") for node in nodes)
    return Picture(svg_of(nodes, edges, shown), drawn, int(pruned.nodes[: graph.errors.stop].sum()))


def _most_influential(graph: Graph, pruned: Pruned, words: list[str], labels: Labels) -> tuple[list[Node], list[Edge]]:
    inner = torch.where(pruned.nodes, pruned.influence, -1.0)[: graph.errors.stop]
    best = inner.topk(min(MOST_NODES, int((inner >= 0).sum()))).indices.tolist()
    columns = [*sorted(best), *range(graph.embeddings.start, graph.embeddings.stop)]
    rows = {column: row for row, column in enumerate(graph.rows.tolist(), len(graph.outputs))}
    names = {column: node_id(graph, column) for column in columns}
    targets = [(output_id(graph, i), i) for i in range(len(graph.outputs))]
    targets += [(names[column], rows[column]) for column in columns if column in rows]
    edges = []
    for name, row in targets:
        size = float(graph.effects[row].abs().sum())
        for column in columns:
            effect = float(graph.effects[row, column])
            if pruned.edges[row, column] and abs(effect) >= LEAST_SHARE * size:
                edges.append(Edge(names[column], name, effect, effect / size))
    nodes = [token_node(graph, pruned, column, words) for column in columns if column >= graph.embeddings.start]
    nodes += [
        _node(graph, column, names[column], float(pruned.influence[column]), words, labels)
        for column in columns
        if column < graph.embeddings.start
    ]
    nodes += [output_node(graph, place, words) for place in range(len(graph.outputs))]
    return nodes, sorted(edges, key=lambda edge: abs(edge.share))


def _node(graph: Graph, column: int, name: str, influence: float, words: list[str], labels: Labels) -> Node:
    kind, number, last = name.split("_")
    position = int(last)
    at = f"at {words[position]!r}, influence {influence:.3f}"
    if kind == "err":
        return Node(name, "error", int(number), position, "error", f"layer {number}: error {at}")
    layer, latent = int(kind), int(number)
    text = labels.get((layer, latent), f"{layer} / {latent}")
    title = f"layer {layer}, latent {latent} {at}, value {float(graph.value[column]):.3g}"
    return Node(name, "latent", layer, position, text, f"{title}: {text}" if (layer, latent) in labels else title)


def output_node(graph: Graph, place: int, words: Sequence[str]) -> Node:
    """Return the box of an output, above all layers at the last position."""
    label = visible(graph.outputs[place].label)
    title = f"{label}: {float(graph.target[place]):.3f}"
    return Node(output_id(graph, place), "output", graph.layers, len(words) - 1, label, title)


def token_node(graph: Graph, pruned: Pruned, column: int, words: Sequence[str]) -> Node:
    """Return the box of a token, below all layers."""
    position = column - graph.embeddings.start
    title = f"token {words[position]!r}, influence {float(pruned.influence[column]):.3f}"
    return Node(node_id(graph, column), "token", -1, position, words[position], title)


def svg_of(nodes: list[Node], edges: list[Edge], words: Sequence[str]) -> str:
    """Return an SVG of boxes in rows by layer and columns by position, with ``edges`` below them."""
    cells: dict[tuple[int, int], list[Node]] = defaultdict(list)
    for node in nodes:
        cells[node.row, node.position].append(node)
    used = sorted({node.row for node in nodes})
    heights = {row: max(len(boxes) for (r, _), boxes in cells.items() if r == row) for row in used}
    bottom, y_of = 0.0, {}
    for row in used:
        bottom -= heights[row] * (HEIGHT + GAP) + ROW_GAP
        y_of[row] = bottom
    wide = {node.position for node in nodes if node.kind != "token"}
    widths = [WIDTH if position in wide else NARROW for position in range(len(words))]
    x_of = [LEFT, *(LEFT + x for x in accumulate(width + COLUMN_GAP for width in widths))]
    top, width = bottom - ROW_GAP, x_of[-1]
    place = {
        node.name: Place(x_of[node.position], y_of[row] - top + i * (HEIGHT + GAP), widths[node.position])
        for (row, _), boxes in cells.items()
        for i, node in enumerate(boxes)
    }
    lines = [f"<svg viewBox='0 0 {width} {-top:.0f}' width='{width}' height='{-top:.0f}' role='img'>"]
    for row in used:
        y = y_of[row] - top
        name = {-1: "token", max(used): "output"}.get(row, f"layer {row}")
        lines.append(f"<line class='grid' x1='0' x2='{width}' y1='{y - ROW_GAP / 2:.1f}' y2='{y - ROW_GAP / 2:.1f}'/>")
        lines.append(f"<text class='axis' x='0' y='{y + 14:.1f}'>{name}</text>")
    lines += [_line(edge, place) for edge in edges]
    lines += [_box(node, place[node.name]) for node in nodes]
    return "\n".join([*lines, "</svg>"])


def _line(edge: Edge, place: Mapping[str, Place]) -> str:
    source, target = place[edge.source], place[edge.target]
    x1, y1, x2, y2 = source.x + source.width / 2, source.y, target.x + target.width / 2, target.y + HEIGHT
    middle = (y1 + y2) / 2
    strength = min(1.0, abs(edge.share) * 4)
    return (
        f"<path class='edge {'up' if edge.effect > 0 else 'down'}' data-from='{edge.source}' data-to='{edge.target}' "
        f"d='M{x1:.1f} {y1:.1f}C{x1:.1f} {middle:.1f} {x2:.1f} {middle:.1f} {x2:.1f} {y2:.1f}' "
        f"stroke-width='{0.5 + 6 * strength:.2f}' opacity='{0.12 + 0.7 * strength:.2f}'>"
        f"<title>{edge.effect:+.3g} ({100 * edge.share:+.1f} %)</title></path>"
    )


def _box(node: Node, place: Place) -> str:
    letters = int(place.width / LETTER)
    text = node.text if len(node.text) <= letters else node.text[: letters - 1] + "…"
    return (
        f"<g class='node {node.kind}' data-id='{node.name}' transform='translate({place.x:.1f} {place.y:.1f})'>"
        f"<title>{escape(node.title)}</title><rect width='{place.width}' height='{HEIGHT}' rx='4'/>"
        f"<text x='6' y='14'>{escape(text)}</text></g>"
    )


def visible(token: str) -> str:
    """Return a token with its spaces and line breaks as signs."""
    return token.replace("\n", "⏎").replace("\t", "→").replace(" ", "␣") if token.strip() != token else token
