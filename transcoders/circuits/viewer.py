"""Graph files for circuit-tracer's viewer (its schema version 1, as circuit-tracer 0.5 writes it).

``circuit-tracer start-server --graph_file_dir FOLDER`` opens a folder of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transcoders.circuits.graph import Graph, Pruned
from transcoders.core.files import write_json

Labels = Mapping[tuple[int, int], str]
"""(layer, latent) -> description, of the latents that have one."""
INDEX = "graph-metadata.json"


def graph_json(
    graph: Graph,
    pruned: Pruned,
    words: list[str],
    *,
    slug: str,
    scan: str,
    prompt: str,
    labels: Labels,
    groups: Mapping[str, Sequence[int]],
    threshold: float,
) -> dict[str, Any]:
    """Return the pruned part of ``graph`` as the viewer reads it.

    ``words`` are the prompt's tokens as text, ``scan`` names the set of transcoders, and ``threshold`` is the share
    of the influence that pruning left to the nodes. ``groups`` are columns by name: the viewer's supernodes.
    """
    columns = torch.nonzero(pruned.nodes)[:, 0].tolist()
    ids = {column: node_id(graph, column) for column in columns}
    reached = _cumulative(pruned.influence)
    nodes = [_node(graph, column, ids[column], float(reached[column]), labels) for column in columns]
    nodes += [_output(graph, place) for place in range(len(graph.outputs))]
    targets = [output_id(graph, place) for place in range(len(graph.outputs))]
    targets += [ids.get(column, "") for column in graph.rows.tolist()]
    rows, sources = (side.tolist() for side in pruned.edges.nonzero(as_tuple=True))
    weights = graph.effects[pruned.edges].tolist()
    return {
        "metadata": {
            "slug": slug,
            "scan": scan,
            "transcoder_list": [],
            "prompt": prompt,
            "prompt_tokens": words,
            "node_threshold": threshold,
            "schema_version": 1,
        },
        "qParams": {
            "pinnedIds": [ids[column] for columns in groups.values() for column in columns],
            "supernodes": [[name, *(ids[column] for column in columns)] for name, columns in groups.items()],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": nodes,
        "links": [
            {"source": ids[source], "target": targets[row], "weight": float(f"{weight:.6g}")}
            for row, source, weight in zip(rows, sources, weights, strict=True)
        ],
    }


def write_index(folder: Path, graphs: list[dict[str, Any]]) -> None:
    """Write the list that the viewer's menu is made of."""
    write_json(folder / INDEX, {"graphs": [graph["metadata"] for graph in graphs]})


def node_id(graph: Graph, column: int) -> str:
    """Return ``layer_latent_position``, ``err_layer_position`` or ``E_token_position``."""
    if column < graph.errors.start:
        return "_".join(map(str, graph.place(column)))
    if column < graph.errors.stop:
        layer, position = divmod(column - graph.errors.start, len(graph.tokens))
        return f"err_{layer}_{position}"
    position = column - graph.embeddings.start
    return f"E_{int(graph.tokens[position])}_{position}"


def output_id(graph: Graph, place: int) -> str:
    """Return the id of an output, above all layers."""
    return f"{graph.layers + 1}_{graph.outputs[place].token}_{len(graph.tokens) - 1}"


def _node(graph: Graph, column: int, name: str, reached: float, labels: Labels) -> dict[str, Any]:
    layer, number, position = name.split("_")
    common = {
        "node_id": name,
        "jsNodeId": f"{layer}_{number}-0",
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "clerp": "",
        "influence": float(f"{reached:.6g}"),
        "activation": None,
        "ctx_idx": int(position),
    }
    if layer == "E":
        return common | {"feature": int(position), "layer": "E", "feature_type": "embedding"}
    if layer == "err":
        return common | {
            "feature": -1,
            "layer": number,
            "feature_type": "mlp reconstruction error",
            "jsNodeId": f"{number}_err-{position}",
        }
    return common | {
        "feature": _cantor(int(layer), int(number)),
        "layer": layer,
        "feature_type": "cross layer transcoder",
        "clerp": labels.get((int(layer), int(number)), f"L{layer} latent {number}"),
        "activation": float(f"{float(graph.value[column]):.6g}"),
    }


def _output(graph: Graph, place: int) -> dict[str, Any]:
    output = graph.outputs[place]
    name = output_id(graph, place)
    return {
        "node_id": name,
        "jsNodeId": f"L_{output.token}-{len(graph.tokens) - 1}",
        "feature": output.token,
        "layer": str(graph.layers + 1),
        "ctx_idx": len(graph.tokens) - 1,
        "feature_type": "logit",
        "token_prob": float(f"{output.probability:.6g}"),
        "is_target_logit": place == 0,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "clerp": f'Output "{output.label}" (p={output.probability:.3f})',
        "influence": None,
        "activation": None,
    }


def _cantor(layer: int, latent: int) -> int:
    """Return the one number that the viewer has for the two (Cantor's pairing)."""
    return (layer + latent) * (layer + latent + 1) // 2 + latent


def _cumulative(influence: Tensor) -> Tensor:
    """Return the share of all influence that a node and all stronger ones carry: what the viewer's slider cuts at."""
    order = influence.argsort(descending=True)
    result = torch.empty_like(influence)
    result[order] = influence[order].cumsum(0) / influence.sum()
    return result
