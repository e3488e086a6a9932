"""The files of one prompt's graph."""

import json
from pathlib import Path
from typing import Any

from transcoders.circuits.suite import Traced
from transcoders.circuits.viewer import Labels, graph_json


def write_graph(folder: Path, variant: str, traced: Traced, labels: Labels, threshold: float) -> dict[str, Any]:
    """Write a graph into ``folder`` as a page and, for circuit-tracer's viewer, below graphs/; return the latter."""
    name = f"{variant}-{traced.prompt.name}"
    graph = graph_json(
        traced.graph,
        traced.pruned,
        traced.words,
        slug=name,
        scan=variant,
        prompt=traced.prompt.text,
        labels=labels,
        groups={f"{i} {group.name}": group.columns for i, group in enumerate(traced.supernodes(labels), start=1)},
        threshold=threshold,
    )
    (folder / "graphs" / f"{name}.json").write_text(json.dumps(graph, separators=(",", ":"), allow_nan=False))
    (folder / f"{name}.html").write_text(traced.page(labels, variant))
    return graph
