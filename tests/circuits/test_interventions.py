"""Interventions: direct effects are the graph's, frozen attention passes effects on, the live model is the model."""

import pytest
import torch
from circuits_support import LAYERS, SETTINGS, random_cross_layer, random_transcoders, tiny_gemma, tiny_llama
from test_attribution import TOKENS, difference_of

from transcoders.circuits.attribution import attribute
from transcoders.circuits.frozen import freeze
from transcoders.circuits.interventions import Changes, Intervention, ablate, changed, respond_to
from transcoders.circuits.parts import take_apart
from transcoders.core.errors import UserError

MODELS = {"gemma": tiny_gemma, "llama": tiny_llama}


@pytest.fixture(scope="module", params=[(m, t, s) for m in MODELS for t in ("single", "cross") for s in (False, True)])
def world(request):
    model, kind, skip = request.param
    transcoders = {"single": random_transcoders, "cross": random_cross_layer}[kind](skip=skip)
    return freeze(take_apart(MODELS[model]()), transcoders, TOKENS), transcoders


def active(frozen):
    for layer, step in enumerate(frozen.steps):
        yield from ((layer, i, p) for i, p in zip(step.site.latent.tolist(), step.site.position.tolist(), strict=True))


def test_doubling_a_latent_with_all_frozen_changes_everything_by_its_direct_effects(world):
    frozen, transcoders = world
    targets = difference_of(frozen)
    graph = attribute(frozen, targets, SETTINGS)
    cases = [[Intervention(layer, latent, position, 2.0, "scale")] for layer, latent, position in active(frozen)]
    assert len(cases) == len(graph.layer) > 64  # more than a batch
    run = respond_to(frozen, transcoders, cases, "all")
    logits = (run.states[1:, -1] - run.states[0, -1]) @ targets.directions.T
    torch.testing.assert_close(logits.T, graph.effects[:1, : len(cases)], rtol=1e-8, atol=1e-10)
    for row, column in enumerate(graph.rows.tolist(), start=1):
        layer, position, latent = (int(part[column]) for part in (graph.layer, graph.position, graph.latent))
        site = frozen.steps[layer].site
        at = torch.nonzero((site.position == position) & (site.latent == latent)).item()
        change = (run.x[layer][1:, position] - run.x[layer][0, position]) @ site.encoder[at]
        torch.testing.assert_close(change, graph.effects[row, : len(cases)], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("way", ["nothing", "attention", "all"])
def test_the_first_case_is_the_untouched_model(world, way):
    frozen, transcoders = world
    run = respond_to(frozen, transcoders, [[ablate(0, 3, slice(None))]], way)
    model = frozen.parts.model.base_model(frozen.tokens[None], use_cache=False).last_hidden_state
    torch.testing.assert_close(run.states[:1], model, rtol=1e-5, atol=1e-6)


def live_by_hand(frozen, transcoders, layer, latent, position, value):
    """The model run with what (value - z) times the decoder rows adds, one hook a layer, for single transcoders."""
    model, parts = transcoders[layer], frozen.parts.layers[layer]
    received = {}

    def add(module, arguments, y):
        x = received["x"]
        z = model.encode(x[0, position : position + 1]).dense()[0, latent]
        y = y.clone()
        y[0, position] += (value - z) * model.W_dec[latent] * model.config.output_scale
        return y

    handles = [
        parts.mlp_in.register_forward_hook(lambda module, arguments, x: received.update(x=x)),
        parts.mlp_out.register_forward_hook(add),
    ]
    states = frozen.parts.model.base_model(frozen.tokens[None], use_cache=False).last_hidden_state
    for handle in handles:
        handle.remove()
    return states


def test_with_nothing_frozen_the_real_model_runs_on_what_was_changed():
    transcoders = {n: t.double() for n, t in random_transcoders(skip=True).items()}
    frozen = freeze(take_apart(tiny_gemma()), transcoders, TOKENS)
    layer, latent, position = list(active(frozen))[5]
    run = respond_to(frozen, transcoders, [[Intervention(layer, latent, position, 4.0)]], "nothing")
    torch.testing.assert_close(run.states[1:], live_by_hand(frozen, transcoders, layer, latent, position, 4.0))
    assert float((run.states[1] - run.states[0]).abs().max()) > 1e-3


def test_frozen_attention_passes_effects_through_later_mlps_and_not_through_patterns(world):
    frozen, transcoders = world
    layer, latent, position = list(active(frozen))[2]
    cases = [[Intervention(layer, latent, position, 3.0, "scale")]]
    runs = {way: respond_to(frozen, transcoders, cases, way).states[1] for way in ("nothing", "attention", "all")}
    for one, other in (("nothing", "attention"), ("attention", "all")):
        assert float((runs[one] - runs[other]).abs().max()) > 1e-6
    before = slice(0, position)
    torch.testing.assert_close(runs["attention"][before], runs["all"][before], rtol=1e-6, atol=1e-8)


def test_several_interventions_of_a_case_add_up_and_a_factor_of_one_changes_nothing(world):
    frozen, transcoders = world
    (a, b), same = list(active(frozen))[:2], Intervention(0, 1, slice(1, None), 1.0, "scale")
    cases = [[Intervention(*one, 2.0, "scale")] for one in (a, b)]
    run = respond_to(frozen, transcoders, [*cases, cases[0] + cases[1], [same]], "all")
    final = run.states - run.states[0]
    torch.testing.assert_close(final[1] + final[2], final[3])
    assert float(final[4].abs().max()) < 1e-12


def test_passes_with_a_cache_go_on_where_the_last_ended(world):
    """An open slice holds for later tokens, and what is read in parts is what is read at once."""
    frozen, transcoders = world
    cases = [[], [Intervention(1, 2, slice(2, None), 0.7)], [Intervention(0, 4, slice(-2, None), 0.5)]]
    tokens = frozen.tokens.expand(len(cases), -1)
    body = frozen.parts.model.base_model
    with torch.no_grad(), changed(frozen.parts, Changes(transcoders, cases, len(TOKENS))):
        at_once = body(tokens, use_cache=False).last_hidden_state
    cache, states = None, []
    with torch.no_grad(), changed(frozen.parts, Changes(transcoders, cases, len(TOKENS))):
        for part in tokens.split([3, 1, len(TOKENS) - 4], dim=1):
            out = body(part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            states.append(out.last_hidden_state)
    torch.testing.assert_close(torch.cat(states, 1), at_once)


BAD = {
    "a layer": (Intervention(LAYERS, 0, 1, 0.0), "no transcoder of this layer"),
    "a latent": (Intervention(0, 40, 1, 0.0), "the layer has latents 0 to 39"),
    "BOS": (Intervention(0, 0, 0, 0.0), "position 0 is none of 1 to"),
    "a position": (Intervention(0, 0, 99, 0.0), "position 99 is none of 1 to"),
    "an empty slice": (Intervention(0, 0, slice(0, 1), 0.0), "hold no token but BOS"),
    "a slice with steps": (Intervention(0, 0, slice(1, 5, 2), 0.0), "leave tokens out"),
    "too large a value": (Intervention(0, 0, 1, 1e39), "no finite number"),
    "no number": (Intervention(0, 0, 1, float("nan")), "no finite number"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_exist_is_refused_in_one_line(what):
    frozen = freeze(take_apart(tiny_gemma()), random_transcoders(), TOKENS)
    intervention, words = BAD[what]
    with pytest.raises(UserError, match=words) as refused:
        respond_to(frozen, random_transcoders(), [[intervention]], "nothing")
    assert "\n" not in str(refused.value)
