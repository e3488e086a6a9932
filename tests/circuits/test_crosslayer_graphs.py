"""Cross-layer transcoders in place of the MLPs: what they compute, and that single ones are their special case."""

import numpy as np
import pytest
import torch
from circuits_support import LAYERS, SETTINGS, joined, random_cross_layer, random_transcoders, tiny_gemma
from test_attribution import TOKENS, difference_of
from test_replacement import losses_of

from transcoders.circuits.attribution import attribute
from transcoders.circuits.faithfulness import curves
from transcoders.circuits.frozen import freeze
from transcoders.circuits.parts import replaced, take_apart
from transcoders.circuits.writers import replacements_of, writers_of
from transcoders.core.errors import UserError

KINDS = [{}, {"skip": True}, {"encoder": "jumprelu"}]


def run_replaced(parts, ways):
    """Return each layer's x and y [tokens, layers, d_model], and the final states, of the model with MLPs replaced."""
    x, y = {}, {}

    def recorded(number, replace):
        def run(entering):
            x[number], y[number] = entering, replace(entering)
            return y[number]

        return run

    with torch.inference_mode(), replaced(parts, {n: recorded(n, way) for n, way in ways.items()}):
        states = parts.model.base_model(TOKENS[None]).last_hidden_state
    return (torch.stack([of[n] for n in ways], 2)[0] for of in (x, y)), states


@pytest.mark.parametrize("config", [*KINDS, {"reach": 1}, {"layers": (0, 2, 3)}])
def test_a_layers_output_is_what_the_latents_of_the_same_pass_write_to_it(config):
    transcoder = random_cross_layer(**config)
    (x, y), _ = run_replaced(take_apart(tiny_gemma().float()), replacements_of(transcoder))
    torch.testing.assert_close(y, transcoder(x))


@pytest.mark.parametrize("config", KINDS)
def test_without_cross_decoders_the_replaced_model_is_that_of_single_transcoders(config):
    singles = random_transcoders(**config)
    parts = take_apart(tiny_gemma().float())
    (_, y), states = run_replaced(parts, singles)
    for transcoders in (singles, joined(singles)):
        (_, found), last = run_replaced(parts, replacements_of(transcoders))
        assert torch.equal(found, y)
        assert torch.equal(last, states)


def test_without_cross_decoders_the_losses_are_those_of_single_transcoders():
    singles = random_transcoders()
    expected, found = losses_of(singles), losses_of(joined(singles))
    for way in ("replaced", "with_errors", "zero", "mean"):
        np.testing.assert_array_equal(found.ce[way], expected.ce[way])
        np.testing.assert_array_equal(found.kl[way], expected.kl[way])


@pytest.mark.parametrize("config", KINDS)
def test_without_cross_decoders_the_graph_is_that_of_single_transcoders(config):
    singles, parts = random_transcoders(**config), take_apart(tiny_gemma())
    results = []
    for transcoders in (singles, joined(singles)):
        frozen = freeze(parts, transcoders, TOKENS)
        targets = difference_of(frozen)
        graph = attribute(frozen, targets, SETTINGS)
        results.append((graph, curves(frozen, targets.directions, graph, seed=0)))
    (expected, faithful), (found, of_joined) = results
    for name in ("layer", "position", "latent", "value", "rows", "effects", "constant", "target"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    for name, values in faithful._asdict().items():
        np.testing.assert_array_equal(getattr(of_joined, name), values)


@pytest.mark.parametrize("config", KINDS)
def test_errors_are_what_the_transcoder_misses_on_the_clean_run(config):
    transcoder, model = random_cross_layer(**config), tiny_gemma()
    frozen = freeze(take_apart(model), transcoder, TOKENS)
    x, handles = [], []
    for layer in model.model.layers:
        norm = layer.pre_feedforward_layernorm
        handles.append(norm.register_forward_hook(lambda module, arguments, out: x.append(out[0])))
    model(TOKENS[None])
    y = torch.stack([step.y for step in frozen.steps], 1)
    errors = torch.stack([step.error for step in frozen.steps], 1)
    expected = y - transcoder(torch.stack(x, 1).float()).double()
    torch.testing.assert_close(errors[1:], expected[1:], rtol=1e-4, atol=1e-4)
    assert torch.equal(errors[0], y[0]), "BOS keeps its MLPs"


def test_a_latent_acts_through_its_decoder_of_every_layer_below_the_target():
    """Zeroing the decoders for layers 1 and later leaves what a latent of layer 0 does through layer 0's output."""
    transcoder, parts = random_cross_layer(), take_apart(tiny_gemma())
    frozen = freeze(parts, transcoder, TOKENS)
    complete = attribute(frozen, difference_of(frozen), SETTINGS)
    site = frozen.steps[0].site
    decoders = {n: rows if n == 0 else torch.zeros_like(rows) for n, rows in site.padded_decoders.items()}
    step = frozen.steps[0]._replace(site=site._replace(padded_decoders=decoders))
    own = attribute(frozen._replace(steps=[step, *frozen.steps[1:]]), difference_of(frozen), SETTINGS)
    first = complete.layer == 0
    into = torch.cat([torch.tensor([LAYERS]), complete.layer[complete.rows]])
    order = torch.cat([torch.tensor([0]), 1 + torch.argsort(own.rows)[torch.argsort(torch.argsort(complete.rows))]])
    difference = (complete.effects - own.effects[order])[:, : len(first)]
    assert float(difference[:, ~first].abs().max()) == 0
    assert float(difference[into == 1].abs().max()) == 0, "layer 1 comes before the output of layer 1"
    for layer in range(2, LAYERS + 1):
        assert float(difference[into == layer][:, first].abs().max()) > 1e-3


def test_writers_name_their_targets_as_layers_of_the_model():
    writers = writers_of(random_cross_layer(layers=(0, 2, 3), reach=1))
    assert {number: writer.targets for number, writer in writers.items()} == {0: (0, 2), 2: (2, 3), 3: (3,)}
    assert {n: writer.targets for n, writer in writers_of(random_transcoders([3, 1])).items()} == {1: (1,), 3: (3,)}


def test_a_budget_over_all_layers_is_refused():
    with pytest.raises(UserError, match=r"budget: token chooses .*; circuits need budget: layer"):
        freeze(take_apart(tiny_gemma()), random_cross_layer(budget="token"), TOKENS)


def test_a_cross_layer_transcoder_of_another_model_is_refused():
    parts = take_apart(tiny_gemma())
    with pytest.raises(UserError, match="maps 8 to 8 dimensions, the model has 16"):
        freeze(parts, random_cross_layer(d_model=8), TOKENS)
    with pytest.raises(UserError, match="for layer 4; this model has layers 0 to 3"):
        freeze(parts, random_cross_layer(layers=range(5)), TOKENS)
