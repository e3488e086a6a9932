"""Supernodes: planted modules are found, groups cover the pruned graph, and ablating one is ablating its latents."""

import pytest
import torch
from circuits_support import SETTINGS, random_cross_layer, random_transcoders, tiny_gemma
from test_attribution import TOKENS, difference_of

from transcoders.circuits.attribution import attribute
from transcoders.circuits.frozen import freeze
from transcoders.circuits.graph import Graph, Output, prune, scores
from transcoders.circuits.interventions import ablate, respond_to
from transcoders.circuits.parts import take_apart
from transcoders.circuits.supernodes import (
    MOST,
    group_latents,
    group_of,
    named,
    profiles,
    stability,
    supernode_metrics,
)

WORDS = [f"t{token}" for token in TOKENS.tolist()]


def graph_of(effects, layers, tokens=3, latents=None):
    """A graph of one output whose latents, all traced, have these effects; columns are latents, errors, tokens."""
    count, depth = len(layers), max(layers) + 1
    whole = torch.zeros(1 + count, count + depth * tokens + tokens, dtype=torch.float64)
    for (row, column), value in effects.items():
        whole[row, column if column >= 0 else whole.shape[1] + column] = value
    positions = torch.arange(count) % (tokens - 1) + 1
    ids = torch.arange(count) if latents is None else torch.tensor(latents)
    parts = (torch.arange(tokens), depth, torch.tensor(layers), positions, ids, torch.ones(count))
    outputs, rows = [Output("a", 0, 1.0, 0.5)], torch.arange(count)
    return Graph(*parts, outputs, rows, whole, whole.new_zeros(1 + count), whole.sum(1))


def two_chains(pairs=10):
    """Even latents carry the first token upwards, odd ones the second, each chain with errors of its own size."""
    effects = {(0, 2 * pairs - 2): 1.0, (0, 2 * pairs - 1): 1.0}
    for i in range(2 * pairs):
        effects[i + 1, -2 if i % 2 else -1] = 1.0
        for below in range(i % 2, i, 2):
            effects[i + 1, below] = 0.5
    return graph_of(effects, [i // 2 for i in range(2 * pairs)])


def test_latents_of_different_causes_and_effects_never_share_a_group():
    graph = two_chains()
    groups = group_latents(graph, prune(graph, 1.0, 1.0))
    assert sorted(column for group in groups for column in group) == list(range(20))
    assert len(groups) == MOST
    assert all(len({column % 2 for column in group}) == 1 for group in groups)
    features = profiles(graph, torch.arange(20))
    assert torch.allclose(features.square().sum(1)[:-2], torch.tensor(2.0, dtype=torch.float64))
    assert float(features[0] @ features[1]) < 0.1 < float(features[0] @ features[2])


@pytest.fixture(scope="module", params=[random_transcoders, random_cross_layer])
def world(request):
    transcoders = request.param()
    frozen = freeze(take_apart(tiny_gemma()), transcoders, TOKENS)
    graph = attribute(frozen, difference_of(frozen), SETTINGS)
    return frozen, transcoders, graph, prune(graph, 0.8, 0.98)


def test_groups_hold_every_latent_of_the_pruned_graph_once(world):
    _, _, graph, pruned = world
    groups = group_latents(graph, pruned)
    assert 1 < len(groups) <= MOST
    kept = torch.nonzero(pruned.nodes[: len(graph.layer)])[:, 0].tolist()
    assert sorted(column for group in groups for column in group) == kept
    sizes = [float(pruned.influence[group].sum()) for group in groups]
    assert sizes == sorted(sizes, reverse=True)
    column = groups[0][0]
    labels = {(int(graph.layer[column]), int(graph.latent[column])): "words"}
    first, *others = named(graph, groups, WORDS, labels)
    assert first.name.startswith("words")
    assert all(other.name.startswith("L") for other in others if column not in other.columns)


def test_ablating_a_group_ablates_its_latents_together(world):
    frozen, transcoders, graph, pruned = world
    groups, whole = group_latents(graph, pruned), scores(graph).completeness
    metrics = supernode_metrics(frozen, transcoders, graph, pruned, groups, completeness=whole, seed=0)
    cases = [[ablate(int(graph.layer[c]), int(graph.latent[c]), int(graph.position[c])) for c in g] for g in groups]
    log_p = frozen.parts.head.logits(respond_to(frozen, transcoders, cases, "nothing").states[:, -1]).log_softmax(-1)
    expected = (log_p[0].exp() * (log_p[0] - log_p[1:])).sum(-1).mean()
    assert metrics["supernode_kl"] == pytest.approx(float(expected), rel=1e-3)
    assert metrics["supernode_kl"] > metrics["supernode_kl_random"] > 0
    assert metrics["supernodes"] == len(groups)
    assert metrics["supernode_completeness"] == scores(graph, pruned.nodes).completeness / whole
    assert supernode_metrics(frozen, transcoders, graph, pruned, [], completeness=whole, seed=0) == {}


def test_all_latents_kept_is_the_score_of_the_graph(world):
    _, _, graph, _ = world
    everything = torch.ones(graph.effects.shape[1], dtype=torch.bool)
    assert scores(graph, everything) == scores(graph)
    assert scores(graph, ~everything).completeness < scores(graph).completeness


def test_stability_compares_paraphrases_alone():
    graph = two_chains()
    groups = group_latents(graph, prune(graph, 1.0, 1.0))
    of = group_of(graph, groups)
    assert of[0, 0] == next(number for number, group in enumerate(groups) if 0 in group)
    mixed = {key: number % 3 for number, key in enumerate(sorted(of))}
    assert stability({"a": of, "a_2": of, "b": mixed}) == {"supernode_pairs": 1, "supernode_stability": 1.0}
    assert stability({"a": of, "a_2": mixed})["supernode_stability"] < 0.5
    assert stability({"a": of, "b": of}) == {"supernode_pairs": 0}
    few = dict(list(of.items())[:7])
    assert stability({"a": of, "a_2": few}) == {"supernode_pairs": 0}
