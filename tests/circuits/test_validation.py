"""Validation: a right graph passes, a wrong one does not, and forecasts are ranked by what ablation does."""

import numpy as np
import pytest
import torch
from circuits_support import SETTINGS, random_cross_layer, random_transcoders, tiny_gemma
from test_attribution import TOKENS, difference_of

from transcoders.circuits.attribution import attribute
from transcoders.circuits.frozen import freeze
from transcoders.circuits.interventions import ablate, respond_to
from transcoders.circuits.parts import take_apart
from transcoders.circuits.validation import Ablations, ablations, direct_effect_error, sample_latents


@pytest.fixture(scope="module", params=[random_transcoders, random_cross_layer])
def world(request):
    transcoders = request.param(skip=True)
    frozen = freeze(take_apart(tiny_gemma()), transcoders, TOKENS)
    targets = difference_of(frozen)
    return frozen, transcoders, targets, attribute(frozen, targets, SETTINGS)


def test_a_right_graph_passes_and_one_with_a_wrong_effect_does_not(world):
    frozen, transcoders, targets, graph = world
    columns = sample_latents(graph, 20, seed=0)
    assert len(columns) == len(columns.unique()) == 20
    assert direct_effect_error(frozen, transcoders, targets, graph, columns) < 1e-5
    effects = graph.effects.clone()
    effects[3, columns[4]] += 0.01
    assert direct_effect_error(frozen, transcoders, targets, graph._replace(effects=effects), columns) > 1


def test_the_divergence_is_that_of_the_model_without_the_latent(world):
    frozen, transcoders, _, graph = world
    columns = sample_latents(graph, 10, seed=1)
    measured = ablations(frozen, transcoders, graph, columns)
    c = columns[7]
    case = [ablate(int(graph.layer[c]), int(graph.latent[c]), int(graph.position[c]))]
    states = respond_to(frozen, transcoders, [case], "nothing").states[:, -1]
    clean, without = frozen.parts.head.logits(states).softmax(-1)
    assert measured.kl[7] == pytest.approx(float((clean * (clean / without).log()).sum()), rel=1e-3, abs=1e-7)
    assert (measured.kl > -1e-6).all()
    assert measured.kl.max() > 1e-5
    site = frozen.steps[int(graph.layer[c])].site
    at = torch.nonzero((site.position == graph.position[c]) & (site.latent == graph.latent[c])).item()
    rows = [site.decoder(target)[at] for target in site.padded_decoders]
    assert measured.activation[7] == pytest.approx(float(graph.value[c] * torch.cat(rows).norm()))


def test_correlations_are_of_ranks():
    kl = np.array([0.1, 0.2, 0.4, 0.3])
    foretold = Ablations(np.exp(40 * kl), -kl, np.array([1.0, 1, 1, 1]), kl)
    assert foretold.correlations() == {"influence_kl": pytest.approx(1), "direct_effect_kl": pytest.approx(-1)}
    assert Ablations(kl[:2], kl[:2], kl[:2], kl[:2]).correlations() == {}
