"""Direct effects: sums, gradients of the linearised model, a planted circuit, the real model."""

import pytest
import torch
from circuits_support import LAYERS, SETTINGS, random_cross_layer, random_transcoders, tiny_gemma, tiny_llama
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.models.gemma3 import modeling_gemma3

from transcoders.circuits.attribution import Targets, attribute
from transcoders.circuits.frozen import freeze
from transcoders.circuits.graph import Output
from transcoders.circuits.parts import replaced, take_apart
from transcoders.core.errors import UserError

TOKENS = torch.tensor([2, 7, 31, 7, 12, 44])


def difference_of(frozen, first=3, second=9):
    U = frozen.parts.unembedding
    return Targets([Output("a − b", first, 1.0, 0.1)], (U[first] - U[second])[None])


@pytest.mark.parametrize("make", [tiny_gemma, tiny_llama])
@pytest.mark.parametrize("config", [{}, {"skip": True}, {"encoder": "jumprelu"}])
@pytest.mark.parametrize("transcoders", [random_transcoders, random_cross_layer])
def test_effects_sum_to_every_pre_activation_and_to_the_logit_difference(make, config, transcoders):
    parts = take_apart(make())
    frozen = freeze(parts, transcoders(**config), TOKENS)
    graph = attribute(frozen, difference_of(frozen), SETTINGS)
    assert len(graph.rows) == len(graph.layer) > 20
    torch.testing.assert_close(graph.effects.sum(1) + graph.constant, graph.target, rtol=1e-9, atol=1e-9)
    assert float(graph.sum_errors().max()) < 1e-9
    logits = parts.model(TOKENS[None]).logits[0, -1]
    assert float(graph.target[0]) == pytest.approx(float(logits[3] - logits[9]), rel=1e-5)


@pytest.mark.parametrize("transcoders", [random_transcoders, random_cross_layer])
def test_layers_without_a_transcoder_are_errors(transcoders):
    parts = take_apart(tiny_gemma())
    frozen = freeze(parts, transcoders([1, 3]), TOKENS)
    graph = attribute(frozen, difference_of(frozen), SETTINGS)
    assert set(graph.layer.tolist()) == {1, 3}
    assert float(graph.sum_errors().max()) < 1e-9


@pytest.mark.parametrize("transcoders", [random_transcoders, random_cross_layer])
def test_nothing_acts_on_what_comes_before_it(transcoders):
    frozen = freeze(take_apart(tiny_gemma()), transcoders(), TOKENS)
    graph = attribute(frozen, difference_of(frozen), SETTINGS)
    among_latents = graph.effects[graph.latent_rows, : len(graph.layer)]
    later = graph.layer >= graph.layer[graph.rows][:, None]
    right = graph.position > graph.position[graph.rows][:, None]
    assert float(among_latents[later | right].abs().max()) == 0
    assert float(among_latents.abs().max()) > 0


@pytest.fixture
def frozen_norms_and_attention(monkeypatch):
    """Makes the library's own Gemma linear: what the attention and the norms divide by is detached."""

    def norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps).detach() * (1 + self.weight)

    def attention(module, query, key, value, mask, **options):
        return modeling_gemma3.eager_attention_forward(module, query.detach(), key.detach(), value, mask, **options)

    monkeypatch.setattr(modeling_gemma3.Gemma3RMSNorm, "forward", norm)
    AttentionInterface.register("frozen", attention)
    AttentionMaskInterface.register("frozen", eager_mask)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("make", [random_transcoders, random_cross_layer])
def test_effects_are_gradients_of_the_linearised_model(skip, make, frozen_norms_and_attention):
    """Through the library's own forward pass and autograd, not through anything of ours."""
    model, transcoders = tiny_gemma(), make(skip=skip)
    parts = take_apart(model)
    frozen = freeze(parts, transcoders, TOKENS)
    graph = attribute(frozen, difference_of(frozen), SETTINGS)
    model.set_attn_implementation("frozen")
    T = len(TOKENS)
    latents = [step.site.value.clone().requires_grad_() for step in frozen.steps]
    errors = [step.error.clone().requires_grad_() for step in frozen.steps]
    embedding = frozen.embedding.clone().requires_grad_()
    seen = {}

    def replacement(layer):
        def replace(x):
            site = frozen.steps[layer].site
            seen[layer] = (x[0, site.position] * site.encoder).sum(1) + site.encoder_bias
            y = site.bias
            for number, writes in frozen.sites_of(layer):
                y = y.index_add(0, writes.position, latents[number][:, None] * writes.decoder(layer))
            if skip:
                y = y + x[0] @ site.skip.T
            return (y + errors[layer])[None]

        return replace

    with replaced(parts, {layer: replacement(layer) for layer in range(LAYERS)}):
        # At BOS `replaced` keeps the model's own MLP; here all of it is an error node.
        mlp_output = {layer: frozen.steps[layer].y[0] for layer in range(LAYERS)}
        handles = [
            parts.layers[n].mlp_out.register_forward_hook(
                lambda m, a, y, n=n: torch.cat([errors[n][:1][None] + 0 * mlp_output[n], y[:, 1:]], 1)
            )
            for n in range(LAYERS)
        ]
        logits = model(inputs_embeds=embedding[None]).logits[0, -1]
        for handle in handles:
            handle.remove()
    sources = [*latents, *errors, embedding]

    def effects_on(target):
        grads = torch.autograd.grad(target, sources, retain_graph=True, allow_unused=True)
        grads = [torch.zeros_like(s) if g is None else g for g, s in zip(grads, sources, strict=True)]
        effects = [g * s for g, s in zip(grads, sources, strict=True)]
        return torch.cat([*effects[:LAYERS], *(e.sum(1) for e in effects[LAYERS:])]).detach()

    assert graph.effects.shape[1] == sum(map(len, latents)) + (LAYERS + 1) * T
    torch.testing.assert_close(graph.effects[0], effects_on(logits[3] - logits[9]), rtol=1e-9, atol=1e-11)
    pre_activations = torch.cat([seen[layer] for layer in range(LAYERS)])
    torch.testing.assert_close(pre_activations, graph.value, rtol=1e-9, atol=1e-11)
    for row in range(0, len(graph.rows), 5):
        expected = effects_on(pre_activations[graph.rows[row]])
        torch.testing.assert_close(graph.effects[1 + row], expected, rtol=1e-9, atol=1e-11)


def test_the_most_influential_latents_are_traced_first():
    frozen = freeze(take_apart(tiny_gemma()), random_transcoders(), TOKENS)
    complete = attribute(frozen, difference_of(frozen), SETTINGS)
    part = attribute(frozen, difference_of(frozen), SETTINGS.model_copy(update={"max_latents": 20}))
    assert len(part.rows) == 20
    same = torch.nonzero(complete.rows[None] == part.rows[:, None])[:, 1]
    torch.testing.assert_close(part.effects[part.latent_rows], complete.effects[complete.latent_rows][same])
    from transcoders.circuits.graph import influence

    best = influence(complete)[: len(complete.layer)].topk(10).indices
    assert len(set(best.tolist()) & set(part.rows.tolist())) >= 7


def test_a_transcoder_of_another_model_or_layer_is_refused():
    parts = take_apart(tiny_gemma())
    with pytest.raises(UserError, match="maps 8 to 8 dimensions, the model has 16"):
        freeze(parts, random_transcoders([0], d_model=8), TOKENS)
    with pytest.raises(UserError, match="for layer 4; this model has layers 0 to 3"):
        freeze(parts, random_transcoders([4]), TOKENS)


def test_a_model_of_unknown_layout_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    with pytest.raises(UserError, match="GPT2LMHeadModel has others"):
        take_apart(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9)))


def test_a_model_that_does_more_is_refused():
    model = tiny_gemma()
    parts = take_apart(model)
    model.model.layers[1].register_forward_hook(lambda module, arguments, out: out + 1)
    with pytest.raises(UserError, match="gives other logits"):
        freeze(parts, random_transcoders(), TOKENS)
