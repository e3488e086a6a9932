"""Everything about one prompt: its graph, what is left of it after pruning, and whether it is faithful."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from transcoders.circuits.attribution import attribute, difference
from transcoders.circuits.faithfulness import Curves, curves
from transcoders.circuits.frozen import freeze
from transcoders.circuits.graph import Graph, Pruned, path_length, prune, scores
from transcoders.circuits.pages import graph_page
from transcoders.circuits.parts import ModelParts, load_parts, replaced
from transcoders.circuits.prompts import Prompt
from transcoders.circuits.replacement import run_with_latents
from transcoders.circuits.settings import CircuitSettings
from transcoders.circuits.supernodes import Supernode, group_latents, named, supernode_metrics
from transcoders.circuits.validation import validate
from transcoders.circuits.viewer import Labels
from transcoders.circuits.writers import Transcoders, replacements_of, writers_of
from transcoders.core.devices import resolve_device
from transcoders.core.errors import UserError
from transcoders.dictionary.crosslayer.transcoder import CrossLayerTranscoder
from transcoders.dictionary.transcoder import Transcoder
from transcoders.language.model import load_tokenizer
from transcoders.language.tokens import check_room, recorded_start, text_ids

FACTS = (
    "difference",
    "completeness_error",
    "completeness",
    "replacement",
    "path_length",
    "graph_latents",
    "graph_errors",
    "graph_edges",
    "faithfulness",
    "latents_needed",
    "direct_effect_error",
    "influence_kl",
    "supernode_completeness",
    "supernode_kl",
    "supernode_kl_random",
)
"""Metrics that stand on a graph's page."""


class Traced(NamedTuple):
    """Hold a prompt's circuit: its graph, what pruning left of it, and how faithful it is."""

    prompt: Prompt
    words: list[str]
    """The prompt's tokens as text, the start of its context first."""
    graph: Graph
    pruned: Pruned
    groups: list[list[int]]
    """Columns of the pruned graph's latents by group."""
    curves: Curves
    metrics: dict[str, float]

    def facts(self) -> dict[str, str]:
        """Return the main metrics, as the page shows them, and a warning where the model prefers the foil."""
        warning = {"the model itself prefers": self.prompt.foil} if self.metrics["difference"] <= 0 else {}
        return warning | {key.replace("_", " "): f"{self.metrics[key]:.4g}" for key in FACTS if key in self.metrics}

    def supernodes(self, labels: Labels) -> list[Supernode]:
        """Return the groups with names, which are descriptions of latents where ``labels`` have some."""
        return named(self.graph, self.groups, self.words, labels)

    def page(self, labels: Labels | None = None, transcoders: str | None = None) -> str:
        """Return an HTML page with a picture of the graph.

        ``labels`` describe latents, by (layer, latent); ``transcoders`` says which set of transcoders this is.
        """
        title = f"{self.prompt.text} →{self.prompt.answer}, not{self.prompt.foil}"
        facts = {"transcoders": transcoders, **self.facts()} if transcoders else self.facts()
        groups = self.supernodes(labels or {})
        return graph_page(self.graph, self.pruned, groups, self.words, title=title, facts=facts, labels=labels or {})


def trace(
    text: str,
    answer: str,
    foil: str,
    transcoders: CrossLayerTranscoder | Mapping[int, Transcoder | str | Path],
    model: str | Path = "data/model",
    settings: CircuitSettings | None = None,
    device: str = "cpu",
) -> Traced:
    """Trace which latents raise the logit of ``answer`` over that of ``foil`` after ``text``.

    Args:
        text: What the model reads, after what the contexts began with that the transcoders were trained on.
        answer: A continuation of the text, with its space, such as ``" Paris"``: its first token counts.
        foil: Another continuation: what is traced is the difference of the two logits.
        transcoders: By layer, a transcoder on ``device`` (``transcoders.load`` reads anybody's) or the folder of one
            of ours; or a cross-layer transcoder on ``device``. The MLPs of other layers are errors as a whole: their
            outputs are taken as they are, and the causes of these are not traced.
        model: The folder of the language model, as stage `model` writes it.
        settings: How much of the graph is traced and kept (``circuits`` in params.yaml); None takes the defaults.
        device: Where to compute: auto, cpu, cuda or cuda:N.

    Returns:
        The graph, what pruning left of it, faithfulness curves, and metrics (docs/circuits.md explains them).

    Raises:
        UserError: a text is empty, answer and foil begin with the same token, a transcoder does not fit the model or
            chooses latents over all layers at once, or the model's layers are not like Gemma's or Llama's.
    """
    empty = [name for name, value in (("text", text), ("answer", answer), ("foil", foil)) if not value]
    if empty:
        raise UserError(f"{empty[0]}: is empty; trace() needs a text, an answer and a foil")
    where = resolve_device(device)
    prompt = Prompt(name="prompt", task="any", text=text, answer=answer, foil=foil)
    parts, tokenizer = load_parts(Path(model), where), load_tokenizer(Path(model))
    return trace_prompt(parts, loaded(transcoders, where), tokenizer, prompt, settings or CircuitSettings())


def trace_prompt(
    parts: ModelParts,
    transcoders: Transcoders,
    tokenizer: Any,
    prompt: Prompt,
    settings: CircuitSettings,
) -> Traced:
    """Trace the logit difference of a prompt's answer and foil, with the model and its transcoders at hand."""
    tokens = prompt_tokens(tokenizer, transcoders, prompt.text)
    check_room(parts.model, tokens[None], f"circuits.prompts: {prompt.name}")
    words = [tokenizer.decode([token]) for token in tokens.tolist()]
    frozen = freeze(parts, transcoders, tokens)
    targets = difference(frozen, tokenizer, prompt.answer, prompt.foil)
    graph = attribute(frozen, targets, settings)
    pruned = prune(graph, settings.node_threshold, settings.edge_threshold)
    measured = curves(frozen, targets.directions, graph, settings.seed)
    with torch.inference_mode(), replaced(parts, replacements_of(transcoders)):
        states = parts.model.base_model(frozen.tokens[None], use_cache=False).last_hidden_state
    without_errors = float(states[0, -1] @ targets.directions[0])
    latents = pruned.nodes[: graph.errors.start]
    of_pruned = float(run_with_latents(frozen, targets.directions, latents[None])[0, 0])
    metrics = _metrics(graph, pruned, measured, without_errors, of_pruned, settings.faithfulness)
    metrics |= validate(frozen, transcoders, targets, graph, settings)
    groups = group_latents(graph, pruned)
    metrics |= supernode_metrics(
        frozen, transcoders, graph, pruned, groups, completeness=metrics["completeness"], seed=settings.seed
    )
    return Traced(prompt, words, graph, pruned, groups, measured, metrics)


def prompt_tokens(tokenizer: Any, transcoders: Transcoders, text: str) -> Int[Tensor, "tokens"]:
    """Return the tokens of ``text`` after what the contexts began with that ``transcoders`` were trained on.

    Raises:
        UserError: their contexts began differently.
    """
    return torch.tensor([*_start(tokenizer, transcoders), *text_ids(tokenizer, text)])


def loaded(
    transcoders: CrossLayerTranscoder | Mapping[int, Transcoder | str | Path], device: torch.device
) -> Transcoders:
    """Return the transcoders, of which some may be folders still."""
    if isinstance(transcoders, CrossLayerTranscoder):
        return transcoders
    return {n: t if isinstance(t, Transcoder) else Transcoder.load(t, device) for n, t in transcoders.items()}


def _start(tokenizer: Any, transcoders: Transcoders) -> list[int]:
    """Return what the contexts began with that all ``transcoders`` were trained on."""
    provenances = [writer.provenance for writer in writers_of(transcoders).values()]
    records = [{name: p[name] for name in ("context_start",) if name in p} for p in provenances] or [{}]
    different = [record for place, record in enumerate(records) if record not in records[:place]]
    starts = [recorded_start(tokenizer, record) for record in different]  # each copies the whole vocabulary
    if any(start != starts[0] for start in starts):
        tokens = ", ".join(sorted({repr(start.token) for start in starts}))
        raise UserError(f"the contexts of these transcoders began with different tokens ({tokens}); take one kind")
    return starts[0].ids


def _metrics(
    graph: Graph, pruned: Pruned, measured: Curves, without_errors: float, of_pruned: float, share: float
) -> dict[str, float]:
    """Return a prompt's metrics, given the outputs of the transcoders alone and of the pruned graph's latents."""
    clean, none = float(graph.target[0]), float(measured.kept[0])
    score = scores(graph)
    metrics = {
        "difference": clean,
        "probability": graph.outputs[0].probability,
        "share_without_errors": without_errors / clean,
        "share_without_latents": none / clean,
        "completeness_error": abs(float(graph.effects[0].sum() + graph.constant[0]) - clean) / abs(clean),
        "largest_sum_error": float(graph.sum_errors().max()),
        "active_latents": float(len(graph.layer)),
        "graph_latents": float(pruned.nodes[: graph.errors.start].sum()),
        "graph_errors": float(pruned.nodes[graph.errors].sum()),
        "graph_edges": float(pruned.edges.sum()),
        "replacement": score.replacement,
        "completeness": score.completeness,
        "path_length": path_length(graph),
        "direction_agreement": measured.direction_agreement,
    }
    if measured.latents_matter:
        metrics["faithfulness"] = (of_pruned - none) / (clean - none)
        metrics["latents_needed"] = float(measured.size_at(share))
        metrics["drop_beyond_random"] = measured.drop
    return metrics
