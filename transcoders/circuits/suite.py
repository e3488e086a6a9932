"""Everything about one prompt: its graph, what is left of it after pruning, and whether it is faithful."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from transcoders.circuits.attribution import attribute, difference
from transcoders.circuits.faithfulness import Curves, curves
from transcoders.circuits.frozen import freeze
from transcoders.circuits.graph import Graph, Pruned, prune, scores
from transcoders.circuits.layout import Layout, replaced
from transcoders.circuits.prompts import Prompt
from transcoders.circuits.replacement import run_with_latents
from transcoders.circuits.settings import CircuitSettings
from transcoders.dictionary.transcoder import Transcoder


class Traced(NamedTuple):
    """A prompt's circuit."""

    graph: Graph
    kept: Pruned
    curves: Curves
    metrics: dict[str, float]


def trace(
    layout: Layout, transcoders: Mapping[int, Transcoder], tokenizer: Any, prompt: Prompt, settings: CircuitSettings
) -> Traced:
    """Trace the logit difference of answer and foil."""
    tokens = torch.tensor(tokenizer(prompt.text)["input_ids"])
    frozen = freeze(layout, transcoders, tokens)
    targets = difference(frozen, tokenizer, prompt.answer, prompt.foil)
    graph = attribute(frozen, targets, settings)
    kept = prune(graph, settings.node_threshold, settings.edge_threshold)
    found = curves(frozen, targets.directions, graph, settings.seed)
    clean = float(graph.target[0])
    latents = kept.nodes[: graph.errors.start]
    with torch.inference_mode(), replaced(layout, transcoders):
        states = layout.model.base_model(frozen.tokens[None], use_cache=False).last_hidden_state
    bare = float(states[0, -1] @ targets.directions[0])
    pruned = float(run_with_latents(frozen, targets.directions, latents[None])[0, 0])
    score = scores(graph)
    metrics = {
        "difference": clean,
        "probability": targets.outputs[0].probability,
        "share_without_errors": bare / clean,
        "share_without_latents": float(found.kept[0]) / clean,
        "completeness_error": abs(float(graph.effects[0].sum() + graph.constant[0]) - clean) / abs(clean),
        "largest_sum_error": float(graph.sum_errors().max()),
        "active_latents": float(len(graph.layer)),
        "graph_latents": float(latents.sum()),
        "graph_errors": float(kept.nodes[graph.errors].sum()),
        "graph_edges": float(kept.edges.sum()),
        "replacement": score.replacement,
        "completeness": score.completeness,
        "direction_agreement": found.direction_agreement,
    }
    if found.latents_matter:
        metrics["faithfulness"] = (pruned - float(found.kept[0])) / (clean - float(found.kept[0]))
        metrics["latents_needed"] = float(found.size_at(settings.faithfulness))
        metrics["drop_beyond_random"] = found.drop
    return Traced(graph, kept, found, metrics)
