"""The pages of the circuits stage: HTML that opens from disk and needs no network, light and dark."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from transcoders.circuits.graph import Graph, Pruned
from transcoders.circuits.picture import picture
from transcoders.circuits.viewer import Labels

HERE = Path(__file__).parent / "page"
COLUMNS = ("completeness", "graph_latents", "graph_edges", "faithfulness", "latents_needed")
"""Metrics of a prompt that stand in the index."""


def graph_page(
    graph: Graph, pruned: Pruned, words: list[str], *, title: str, facts: Mapping[str, str], labels: Labels
) -> str:
    """Return HTML with a picture of the most influential nodes that ``pruned`` holds, and ``facts`` above it."""
    drawn = picture(graph, pruned, words, labels)
    pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    legend = (
        f"The {drawn.drawn} most influential of {drawn.pruned} latents and errors in the pruned graph. "
        "Solid boxes are latents, dashed ones what a transcoder misses of its MLP. Blue raises, orange lowers; "
        "width is the share of all that reaches the node above. Lines below 1 % are left out. Point at a "
        "box for its value, click it to keep its lines."
    )
    return document(
        title,
        f"<dl>{pairs}</dl>\n<p class='pale'>{legend}</p>\n<div class='scroll'>{drawn.svg}</div>\n"
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
