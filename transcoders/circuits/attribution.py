"""Tracing a prompt: direct effects of every source on the outputs and on the latents that matter to them."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from transcoders.circuits.frozen import Frozen, attend_back, walk_back
from transcoders.circuits.graph import Graph, Output, influence
from transcoders.circuits.settings import CircuitSettings
from transcoders.core.errors import UserError
from transcoders.language.tokens import text_ids

ROUNDS = 8  # of choosing which latents to trace next, where not all are


class Targets(NamedTuple):
    """Hold the directions of the final state to trace, and what they are."""

    outputs: list[Output]
    directions: Float[Tensor, "outputs d_model"]


def difference(frozen: Frozen, tokenizer: Any, answer: str, foil: str) -> Targets:
    """Return the direction of the logit of ``answer`` less that of ``foil``, each by its first token.

    Where the model soft-caps its logits, these are the ones before it does.

    Raises:
        UserError: the two begin with the same token.
    """
    first, second = (text_ids(tokenizer, text)[0] for text in (answer, foil))
    if first == second:
        raise UserError(f"answer {answer!r} and foil {foil!r} begin with the same token; nothing tells them apart")
    unembedding = frozen.parts.unembedding
    probability = float(frozen.parts.head.logits(frozen.last[None])[0].softmax(0)[first])
    label = f"{tokenizer.decode([first]).strip()} − {tokenizer.decode([second]).strip()}"
    return Targets([Output(label, first, 1.0, probability)], (unembedding[first] - unembedding[second])[None])


@torch.no_grad()
def attribute(frozen: Frozen, targets: Targets, settings: CircuitSettings) -> Graph:
    """Trace the effects on ``targets`` and on the ``settings.max_latents`` most influential latents.

    These latents are chosen in rounds, by their influence along what is traced so far.
    """
    blank = _blank(frozen, targets)
    active, first = len(blank.layer), len(targets.outputs)
    most = min(settings.max_latents, active)
    effects = blank.effects.new_zeros(first + most, blank.embeddings.stop)
    constant = effects.new_zeros(first + most)
    G = effects.new_zeros(len(frozen.tokens), first, targets.directions.shape[1])
    G[-1] = targets.directions * frozen.final
    _trace_(effects[:first], constant[:first], blank, frozen, len(frozen.steps) - 1, G)
    rows = blank.rows

    def so_far() -> Graph:
        done = first + len(rows)
        target = torch.cat([targets.directions @ frozen.last, blank.value[rows]])
        return blank._replace(rows=rows, effects=effects[:done], constant=constant[:done], target=target)

    while len(rows) < most:
        left = influence(so_far())[:active]
        left[rows] = -1
        count = most if most == active else -(-most // ROUNDS)
        chosen = left.topk(min(count, most - len(rows))).indices.sort().values
        for layer in blank.layer[chosen].unique():
            for part in chosen[blank.layer[chosen] == layer].split(settings.batch_size):
                here = slice(first + len(rows), first + len(rows) + len(part))
                _trace_latents_(effects[here], constant[here], blank, frozen, part)
                rows = torch.cat([rows, part])
    return so_far()


def _blank(frozen: Frozen, targets: Targets) -> Graph:
    """Return the graph's nodes, without a row yet."""
    sites = [step.site for step in frozen.steps]
    present = [site for site in sites if site is not None]
    counts = torch.tensor([0 if site is None else len(site.latent) for site in sites])
    device, empty = frozen.tokens.device, frozen.embedding.new_empty(0)
    return Graph(
        tokens=frozen.tokens,
        layers=len(sites),
        layer=torch.arange(len(sites)).repeat_interleave(counts).to(device),
        position=torch.cat([site.position for site in present]),
        latent=torch.cat([site.latent for site in present]),
        value=torch.cat([site.value for site in present]),
        outputs=targets.outputs,
        rows=torch.empty(0, dtype=torch.long, device=device),
        effects=empty,
        constant=empty,
        target=empty,
    )


def _trace_latents_(effects: Tensor, constant: Tensor, graph: Graph, frozen: Frozen, columns: Tensor) -> None:
    """Fill the rows of latents of one layer, given as columns in ascending order."""
    number = int(graph.layer[columns[0]])
    step = frozen.steps[number]
    assert step.site is not None
    chosen = columns - int((graph.layer < number).sum())
    position = step.site.position[chosen]
    G = effects.new_zeros(int(position.max()) + 1, len(columns), frozen.embedding.shape[1])
    G[position, torch.arange(len(columns), device=position.device)] = step.site.encoder[chosen] * step.mlp_in[position]
    constant += step.site.encoder_bias[chosen]
    _trace_(effects, constant, graph, frozen, number - 1, attend_back(step, frozen.parts.layers[number], G))


def _trace_(effects: Tensor, constant: Tensor, graph: Graph, frozen: Frozen, highest: int, G: Tensor) -> None:
    """Add the effects of every source up to layer ``highest`` on the targets whose gradient there is ``G``.

    A latent acts through each output up to there that it writes to, so its effect is a sum over these.
    """
    tokens = len(frozen.tokens)
    for below, gradient in walk_back(frozen, highest, G):
        to = len(gradient)
        if below < 0:
            start = graph.embeddings.start
            effects[:, start : start + to] = torch.einsum("tbd,td->bt", gradient, frozen.embedding[:to])
            continue
        step = frozen.steps[below]
        start = graph.errors.start + below * tokens
        effects[:, start : start + to] = torch.einsum("tbd,td->bt", gradient, step.error[:to])
        if step.site is not None:
            constant += torch.einsum("tbd,td->b", gradient, step.site.bias[:to])
        for number, site in frozen.sites_of(below):
            per_unit = torch.bmm(gradient, site.padded_decoders[below][:to].mT)
            per_latent = per_unit.transpose(1, 2)[site.occupied[:to]]
            start, count = int((graph.layer < number).sum()), len(per_latent)
            effects[:, start : start + count] += (per_latent * site.value[:count, None]).T
