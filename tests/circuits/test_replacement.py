"""The replaced model: end-to-end loss, running with some latents, faithfulness."""

import numpy as np
import pytest
import torch
from circuits_support import LAYERS, SETTINGS, random_cross_layer, random_transcoders, tiny_gemma
from test_attribution import TOKENS, difference_of

from transcoders.circuits.attribution import attribute
from transcoders.circuits.faithfulness import Curves, curves
from transcoders.circuits.frozen import freeze
from transcoders.circuits.graph import respond
from transcoders.circuits.parts import take_apart
from transcoders.circuits.replacement import replaced_losses, run_with_latents
from transcoders.evaluation.loss import context_batches


@pytest.fixture(scope="module", params=[random_transcoders, random_cross_layer])
def traced(request):
    frozen = freeze(take_apart(tiny_gemma()), request.param(skip=True), TOKENS)
    targets = difference_of(frozen)
    return frozen, targets, attribute(frozen, targets, SETTINGS)


def test_all_latents_with_errors_give_the_clean_output(traced):
    frozen, targets, graph = traced
    mask = torch.ones(1, len(graph.layer), dtype=torch.bool)
    live = run_with_latents(frozen, targets.directions, mask)
    torch.testing.assert_close(live[0, 0], graph.target[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(respond(graph, mask)[0], graph.target[:1])


def linear_run(frozen, direction, mask):
    """The linear model forwards, layer by layer, with some latents missing."""
    r, counts = frozen.embedding, [len(step.site.latent) for step in frozen.steps]
    written = {}
    layers = zip(frozen.steps, frozen.parts.layers, mask.split(counts), strict=True)
    for number, (step, layer, part) in enumerate(layers):
        v = ((r * step.attention_in) @ layer.W_v.T).view(len(r), 2, 6).repeat_interleave(2, 1)
        mixed = torch.stack([step.pattern[h] @ v[:, h] for h in range(4)], 1).flatten(1)
        r = r + mixed @ layer.W_o.T * step.attention_out
        x, site = r * step.mlp_in, step.site
        values = ((x[site.position] * site.encoder).sum(1) + site.encoder_bias) * part
        written[number] = values
        y = site.bias
        for source, writes in frozen.sites_of(number):
            y = y.index_add(0, writes.position, written[source][:, None] * writes.decoder(number))
        y[1:] += x[1:] @ site.skip.T
        r = r + y + step.error
    return r[-1] * frozen.final @ direction


def test_the_graph_answers_for_the_linear_model(traced):
    frozen, targets, graph = traced
    mask = torch.rand(5, len(graph.layer), generator=torch.Generator().manual_seed(0)) < 0.6
    expected = torch.stack([linear_run(frozen, targets.directions[0], one) for one in mask])
    torch.testing.assert_close(respond(graph, mask)[:, 0], expected)
    assert float(expected.std()) > 1e-3


def test_faithfulness_runs_from_none_to_all(traced):
    frozen, targets, graph = traced
    measured = curves(frozen, targets.directions, graph, seed=0)
    assert measured.sizes[0] == 0
    assert measured.sizes[-1] == len(graph.layer)
    assert measured.faithfulness[0] == 0
    assert measured.faithfulness[-1] == 1
    assert measured.kept[-1] == pytest.approx(measured.removed[0])
    assert measured.kept[0] == pytest.approx(measured.removed[-1])
    assert measured.random_kept[-1] == pytest.approx(measured.kept[-1])


def test_the_size_is_where_faithfulness_stays():
    rise = np.array([0.0, 0.9, 0.5, 0.85, 1.1, 1.0])
    measured = Curves(np.array([0, 1, 2, 4, 8, 16]), rise, rise[::-1], rise, rise, rise)
    assert measured.size_at(0.8) == 4
    assert measured.size_at(0.95) == 8


def losses_of(transcoders):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 50, (n,), generator=generator).numpy() for n in (9, 6, 12)]
    means = {n: torch.zeros(16) for n in range(LAYERS)}
    batches = context_batches(rows, np.arange(3), 1000)
    return replaced_losses(take_apart(tiny_gemma().float()), transcoders, means, batches, 3)


@pytest.mark.parametrize("make", [random_transcoders, random_cross_layer])
def test_the_loss_with_errors_is_the_clean_one(make):
    losses = losses_of(make())
    np.testing.assert_allclose(losses.ce["with_errors"], losses.ce_clean, rtol=1e-5)
    assert float(losses.kl["with_errors"].abs().max()) < 1e-4
    np.testing.assert_allclose(losses.ce["mean"], losses.ce["zero"], rtol=1e-6)
    assert (losses.kl["replaced"] > 0.01).all()
    assert losses.tokens.tolist() == [8, 5, 11]
