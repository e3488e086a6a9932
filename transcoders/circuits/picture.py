"""A picture of a graph: one HTML page with an SVG, no network, light and dark.

Layers go up, positions go right; blue raises what it points at, orange lowers it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from itertools import accumulate
from typing import Any, NamedTuple

import torch

from transcoders.circuits.graph import Graph, Pruned
from transcoders.circuits.viewer import Labels, node_id, output_id

SHOWN = 40
WIDTH, HEIGHT, GAP, LEFT, ROW_GAP, COLUMN_GAP = 128, 20, 5, 54, 26, 14
NARROW = 66
"""Width of a position that has a token only."""
LETTER = 6.5
LEAST_SHARE = 0.01
"""Of what reaches a node: weaker lines would only be fog."""


class Node(NamedTuple):
    """A box of the picture."""

    name: str
    kind: str
    row: int
    """-1 for tokens, the layer, one more for outputs."""
    position: int
    text: str
    title: str


class Edge(NamedTuple):
    """A line of the picture; ``share`` is the effect over all absolute effects on its target."""

    source: str
    target: str
    effect: float
    share: float


class Place(NamedTuple):
    """Where a box is."""

    x: float
    y: float
    width: int


STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --pale: #6b7280; --line: #d7dbe0;
  --latent: #eef4fb; --error: #f3f0ea; --token: #eceff2; --output: #e9f5ee; --up: #0072b2; --down: #d55e00; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e6e8eb; --pale: #9aa3ad; --line: #33393f;
  --latent: #1c2b3a; --error: #2c2822; --token: #262b31; --output: #1b3126; --up: #56b4e9; --down: #f0934e; } }
body { margin: 1.5rem; background: var(--paper); color: var(--ink); font: 14px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.15rem; margin: 0 0 .3rem; } p { margin: .2rem 0; max-width: 70em; } .pale { color: var(--pale); }
dl { display: flex; flex-wrap: wrap; gap: .2rem 1.6rem; margin: .6rem 0; } dl div { display: flex; gap: .4rem; }
dt { color: var(--pale); } dd { margin: 0; font-variant-numeric: tabular-nums; } a { color: var(--up); }
.scroll { overflow-x: auto; } svg { display: block; font: 11px system-ui, sans-serif; }
rect { stroke: var(--line); } .latent rect { fill: var(--latent); } .error rect { fill: var(--error);
  stroke-dasharray: 3 2; } .token rect { fill: var(--token); } .output rect { fill: var(--output); }
text { fill: var(--ink); } .axis { fill: var(--pale); } .grid { stroke: var(--line); stroke-dasharray: 1 4; }
.edge { fill: none; } .up { stroke: var(--up); } .down { stroke: var(--down); } g.node { cursor: pointer; }
svg.chosen .edge { opacity: .04 !important; } svg.chosen .edge.on { opacity: .95 !important; }
svg.chosen g.node { opacity: .35; } svg.chosen g.node.on { opacity: 1; }
"""
SCRIPT = """
const svg = document.querySelector("svg");
let fixed = null;
function choose(id) {
  svg.classList.toggle("chosen", id !== null);
  svg.querySelectorAll(".on").forEach(e => e.classList.remove("on"));
  if (id === null) return;
  const near = new Set([id]);
  svg.querySelectorAll(".edge").forEach(e => {
    if (e.dataset.from === id || e.dataset.to === id) {
      e.classList.add("on"); near.add(e.dataset.from); near.add(e.dataset.to);
    }
  });
  svg.querySelectorAll("g.node").forEach(n => n.classList.toggle("on", near.has(n.dataset.id)));
}
svg.querySelectorAll("g.node").forEach(n => {
  n.addEventListener("mouseenter", () => fixed === null && choose(n.dataset.id));
  n.addEventListener("mouseleave", () => fixed === null && choose(null));
  n.addEventListener("click", () => { fixed = fixed === n.dataset.id ? null : n.dataset.id; choose(fixed); });
});
"""


def page(graph: Graph, kept: Pruned, tokenizer: Any, *, title: str, facts: Mapping[str, str], labels: Labels) -> str:
    """HTML of the most influential nodes of ``graph`` that ``kept`` holds, with ``facts`` above."""
    words = [_visible(tokenizer.decode([token])) for token in graph.tokens.tolist()]
    nodes, edges = _chosen(graph, kept, words, labels)
    all_kept = int(kept.nodes[: graph.errors.stop].sum())
    drawn = sum(node.kind in ("latent", "error") for node in nodes)
    listed = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<meta name='viewport' content='width=device-width'><title>{escape(title)}</title>"
        f"<style>{STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n<dl>{listed}</dl>\n"
        f"<p class='pale'>The {drawn} most influential of {all_kept} latents and errors in the pruned graph. "
        "Solid boxes are latents, dashed ones what a transcoder misses of its MLP. Blue raises, orange lowers; "
        "width is the share of all that reaches the node above. Lines below 1 % are left out. Point at a "
        "box for its value, click it to keep its lines.</p>\n"
        f"<div class='scroll'>{_svg(nodes, edges, words)}</div>\n<script>{SCRIPT}</script></body></html>\n"
    )


def index_page(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """HTML that links the pages ``<variant>-<prompt>.html``; a row holds a prompt's metrics under one variant."""
    names = ("completeness", "graph_latents", "graph_edges", "faithfulness", "latents_needed")
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in ("prompt", "task", "transcoders", *names))
    body = []
    for row in rows:
        file = escape(f"{row['variant']}-{row['prompt']}.html")
        link = f"<a href='{file}'>{escape(row['prompt'])}</a>"
        cells = [link, escape(row["task"]), escape(row["variant"])]
        cells += [f"{row[name]:.4g}" if name in row else "–" for name in names]
        body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}"
        "td, th { padding: .15rem .9rem .15rem 0; text-align: left; font-variant-numeric: tabular-nums; } "
        f"</style></head><body>\n<h1>{escape(title)}</h1>\n<img src='graph_sizes.svg' alt='graph sizes' "
        f"style='background: #fff; max-width: 100%'>\n<table><tr>{head}</tr>\n"
        + "\n".join(body)
        + "</table></body></html>\n"
    )


def _chosen(graph: Graph, kept: Pruned, words: list[str], labels: Labels) -> tuple[list[Node], list[Edge]]:
    inner = torch.where(kept.nodes, kept.influence, -1.0)[: graph.errors.stop]
    best = inner.topk(min(SHOWN, int((inner >= 0).sum()))).indices.tolist()
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
            if kept.edges[row, column] and abs(effect) >= LEAST_SHARE * size:
                edges.append(Edge(names[column], name, effect, effect / size))
    nodes = [_node(graph, column, names[column], float(kept.influence[column]), words, labels) for column in columns]
    for i, output in enumerate(graph.outputs):
        value = float(graph.target[i])
        nodes.append(Node(
            output_id(graph, i), "output", graph.layers, len(words) - 1, _visible(output.label),
            f"{_visible(output.label)}: {value:.3f}",
        ))  # fmt: skip
    return nodes, sorted(edges, key=lambda edge: abs(edge.share))


def _node(graph: Graph, column: int, name: str, influence: float, words: list[str], labels: Labels) -> Node:
    kind, number, last = name.split("_")
    position = int(last)
    if kind == "E":
        return Node(
            name, "token", -1, position, words[position], f"token {words[position]!r}, influence {influence:.3f}"
        )
    at = f"at {words[position]!r}, influence {influence:.3f}"
    if kind == "err":
        return Node(name, "error", int(number), position, "error", f"layer {number}: error {at}")
    layer, latent = int(kind), int(number)
    text = labels.get((layer, latent), f"{layer} / {latent}")
    title = f"layer {layer}, latent {latent} {at}, value {float(graph.value[column]):.3g}"
    return Node(name, "latent", layer, position, text, f"{title}: {text}" if (layer, latent) in labels else title)


def _svg(nodes: list[Node], edges: list[Edge], words: list[str]) -> str:
    cells: dict[tuple[int, int], list[Node]] = defaultdict(list)
    for node in nodes:
        cells[node.row, node.position].append(node)
    used = sorted({node.row for node in nodes})
    stacks = {row: max(len(own) for (r, _), own in cells.items() if r == row) for row in used}
    bottom, y_of = 0.0, {}
    for row in used:
        bottom -= stacks[row] * (HEIGHT + GAP) + ROW_GAP
        y_of[row] = bottom
    wide = {node.position for node in nodes if node.kind != "token"}
    widths = [WIDTH if position in wide else NARROW for position in range(len(words))]
    x_of = [LEFT, *(LEFT + x for x in accumulate(width + COLUMN_GAP for width in widths))]
    top, width = bottom - ROW_GAP, x_of[-1]
    place = {
        node.name: Place(x_of[node.position], y_of[row] - top + i * (HEIGHT + GAP), widths[node.position])
        for (row, _), own in cells.items()
        for i, node in enumerate(own)
    }
    parts = [f"<svg viewBox='0 0 {width} {-top:.0f}' width='{width}' height='{-top:.0f}' role='img'>"]
    for row in used:
        y = y_of[row] - top
        name = {-1: "token", max(used): "output"}.get(row, f"layer {row}")
        parts.append(f"<line class='grid' x1='0' x2='{width}' y1='{y - ROW_GAP / 2:.1f}' y2='{y - ROW_GAP / 2:.1f}'/>")
        parts.append(f"<text class='axis' x='0' y='{y + 14:.1f}'>{name}</text>")
    parts += [_line(edge, place) for edge in edges]
    parts += [_box(node, place[node.name]) for node in nodes]
    return "\n".join([*parts, "</svg>"])


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


def _visible(token: str) -> str:
    return token.replace("\n", "⏎").replace("\t", "→").replace(" ", "␣") if token.strip() != token else token
