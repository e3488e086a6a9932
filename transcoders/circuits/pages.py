"""The pages of the circuits stage: HTML that opens from disk and needs no network, light and dark."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from transcoders.circuits.collapsed import collapsed_picture, group_lists
from transcoders.circuits.graph import Graph, Pruned
from transcoders.circuits.picture import picture
from transcoders.circuits.supernodes import Supernode
from transcoders.circuits.viewer import Labels

HERE = Path(__file__).parent / "page"
COLUMNS = ("completeness", "graph_latents", "graph_edges", "faithfulness", "latents_needed")
"""Metrics of a prompt that stand in the index."""


def graph_page(
    graph: Graph,
    pruned: Pruned,
    groups: Sequence[Supernode],
    words: list[str],
    *,
    title: str,
    facts: Mapping[str, str],
    labels: Labels,
) -> str:
    """Return HTML with pictures of the groups and of the most influential nodes of ``pruned``, below ``facts``."""
    drawn = picture(graph, pruned, words, labels)
    pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    legend = (
        f"The {drawn.drawn} most influential of {drawn.pruned} latents and errors in the pruned graph. "
        "Solid boxes are latents, dashed ones what a transcoder misses of its MLP. Blue raises, orange lowers; "
        "width is the share of all that reaches the node above. Lines below 1 % are left out. Point at a "
        "box for its value, click it to keep its lines."
    )
    of_groups = (
        f"The pruned graph's latents in {len(groups)} groups, by what feeds them and what they feed. A line is what "
        "all latents of a group do to the other's; errors are left out. Click a box, or a name below, to see a group's "
        "latents."
    )
    return document(
        title,
        f"<dl>{pairs}</dl>\n<h2>Groups</h2><p class='pale'>{of_groups}</p>\n"
        f"<div class='scroll'>{collapsed_picture(graph, pruned, groups, words)}</div>\n"
        f"{group_lists(graph, groups, words, labels)}\n<h2>Latents</h2>"
        f"<p class='pale'>{legend}</p>\n<div class='scroll'>{drawn.svg}</div>\n"
        f"<script>\n{(HERE / 'script.js').read_text()}</script>",
    )


def index_page(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """Return HTML that links the pages ``<variant>-<prompt>.html``; a row is a prompt's metrics under one variant."""
    names = ("prompt", "task", "transcoders", *COLUMNS)
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in names)
    body = []
    for row in rows:
        file = escape(f"{row['variant']}-{row['prompt']}.html")
        link = f"<a href='{file}'>{escape(row['prompt'])}</a>"
        if row["difference"] <= 0:
            link += " (the model prefers the foil)"
        cells = [link, escape(row["task"]), escape(row["variant"])]
        cells += [f"{row[name]:.4g}" if name in row else "–" for name in COLUMNS]
        body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    lines = "\n".join(body)
    image = "<img src='graph_sizes.svg' alt='graph sizes'>"
    return document(title, f"{image}\n<table><tr>{head}</tr>\n{lines}</table>")


def document(title: str, body: str) -> str:
    """Return a page of this room's style around ``body``, which is HTML."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<meta name='viewport' content='width=device-width'><title>{escape(title)}</title>"
        f"<style>\n{(HERE / 'style.css').read_text()}</style></head><body>\n<h1>{escape(title)}</h1>\n{body}\n"
        "</body></html>\n"
    )
