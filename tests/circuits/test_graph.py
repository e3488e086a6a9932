"""Influence and pruning against the dense definition; a planted circuit is recovered; the real model."""

import pytest
import torch
from circuits_support import SETTINGS, random_cross_layer, random_transcoders, tiny_gemma, tiny_llama
from test_attribution import TOKENS, difference_of

from transcoders.circuits.attribution import Targets, attribute, difference
from transcoders.circuits.frozen import freeze
from transcoders.circuits.graph import Output, influence, path_length, prune, scores
from transcoders.circuits.parts import load_parts, take_apart
from transcoders.core.errors import UserError
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.transcoder import Transcoder
from transcoders.language.model import load_tokenizer


@pytest.fixture(scope="module")
def graph():
    frozen = freeze(take_apart(tiny_gemma()), random_transcoders(), TOKENS)
    return attribute(frozen, difference_of(frozen), SETTINGS)


def adjacency(graph):
    columns = graph.effects.shape[1]
    A = torch.zeros(columns + 1, columns + 1, dtype=torch.float64)  # the output is the last node
    A[-1, :-1] = graph.effects[0]
    A[graph.rows, :-1] = graph.effects[graph.latent_rows]
    return A.abs() / A.abs().sum(1, keepdim=True).clamp(min=1e-20)


def test_influence_is_the_geometric_series(graph):
    A, columns = adjacency(graph), graph.effects.shape[1]
    series = torch.linalg.inv(torch.eye(columns + 1, dtype=torch.float64) - A)
    torch.testing.assert_close(influence(graph), series[-1, :-1])


def test_path_length_is_the_mean_number_of_edges(graph):
    A = adjacency(graph)
    powers = [torch.linalg.matrix_power(A, n)[-1, :-1][graph.embeddings].sum() for n in range(1, 7)]
    expected = sum(n * power for n, power in enumerate(powers, 1)) / sum(powers)
    assert path_length(graph) == pytest.approx(float(expected))
    assert float(powers[5]) == 0, "an output is at most four latents and an edge from a token"
    assert 1 < path_length(graph) < 5
    direct = graph.effects.clone()
    direct[0, : graph.embeddings.start] = 0
    assert path_length(graph._replace(effects=direct)) == 1


def test_pruning_keeps_the_share_of_influence_asked_for(graph):
    everything = prune(graph, 1.0, 1.0)
    assert everything.nodes[influence(graph) > 1e-6].all()
    small, smaller = prune(graph, 0.8, 0.98), prune(graph, 0.5, 0.9)
    assert smaller.nodes.sum() < small.nodes.sum() < everything.nodes.sum()
    assert smaller.edges.sum() < small.edges.sum() < everything.edges.sum()
    reached = influence(graph)
    assert float(reached[small.nodes].sum() / reached.sum()) == pytest.approx(0.8, abs=0.05)


def test_what_is_kept_is_connected(graph):
    nodes, edges, _ = prune(graph, 0.6, 0.9)
    ends = torch.zeros_like(nodes)
    ends[graph.embeddings] = True
    assert not (edges & ~nodes).any()
    assert (edges.any(0) | ends)[nodes].all(), "every kept node acts on something"
    of_latents = edges[graph.latent_rows]
    assert of_latents[nodes[graph.rows]].any(1).all(), "every kept latent has a cause"
    assert not of_latents[~nodes[graph.rows]].any()


def test_scores_are_1_without_errors(graph):
    result = scores(graph)
    assert 0 < result.replacement < 1
    assert 0 < result.completeness < 1
    without = graph.effects.clone()
    without[:, graph.errors] = 0
    perfect = scores(graph._replace(effects=without))
    assert perfect.replacement == pytest.approx(1)
    assert perfect.completeness == pytest.approx(1)


A, B, DECOY, NOISE = 0, 1, 2, 3
FIRST, SECOND = 7, 12  # tokens that the planted latents of layer 0 detect
ANSWER, FOIL = 3, 9


@pytest.fixture
def planted():
    """Layer 0: latents A and B fire on two tokens, a decoy on both. Layer 2: one latent needs A, and writes the answer.

    The MLPs themselves are these transcoders, so nothing is left to errors.
    """
    model = tiny_llama()
    torch.manual_seed(5)
    width = 16
    U, E = model.lm_head.weight, model.model.embed_tokens.weight
    basis = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64)).Q
    read, other, decoy, answer = basis[0], basis[1], basis[2], basis[3]
    with torch.no_grad():
        U -= U @ basis[:4].T @ basis[:4]  # only the answer's logit sees the planted directions, and only its own
        U[ANSWER], U[FOIL] = 3 * answer, -0.0 * answer
        E -= E @ basis[:4].T @ basis[:4]
        for norm in [model.model.norm, *(layer.post_attention_layernorm for layer in model.model.layers)]:
            norm.weight.fill_(1.0)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= 0.02
    transcoders = {}
    for number, layer in enumerate(model.model.layers):
        t = Transcoder(TranscoderConfig(encoder="relu", d_in=width, d_out=width, d_hidden=4, k=2))
        t.b_enc.data.fill_(-10.0)
        if number == 0:
            first, second = (E[token] / E[token].norm() for token in (FIRST, SECOND))
            first, second = first - first @ second * second, second - first @ second * first
            t.W_enc.data[A], t.W_enc.data[B], t.W_enc.data[DECOY] = first, second, first + second
            t.b_enc.data[: DECOY + 1] = torch.tensor([-1.0, -1.0, -1.0])
            t.W_dec.data[A], t.W_dec.data[B], t.W_dec.data[DECOY] = 4 * read, 4 * other, 0.1 * decoy
        if number == 2:
            t.W_enc.data[A], t.b_enc.data[A] = read, -0.5
            t.W_enc.data[DECOY], t.b_enc.data[DECOY] = decoy, 0.3
            t.W_dec.data[A], t.W_dec.data[DECOY] = 4 * answer, 0.1 * basis[5]
        transcoders[number] = t.requires_grad_(False)
        layer.mlp = Planted(t)
    return take_apart(model), transcoders


class Planted(torch.nn.Module):
    def __init__(self, transcoder):
        super().__init__()
        self.transcoder = transcoder

    def forward(self, x):
        return self.transcoder(x.float()).to(x)


def test_a_planted_two_layer_circuit_is_recovered(planted):
    parts, transcoders = planted
    frozen = freeze(parts, transcoders, torch.tensor([2, 31, SECOND, 44, FIRST]))
    U = parts.unembedding
    targets = Targets([Output("answer", ANSWER, 1.0, 0.5)], (U[ANSWER] - U[FOIL])[None])
    graph = attribute(frozen, targets, SETTINGS)
    here = set(zip(graph.layer.tolist(), graph.position.tolist(), graph.latent.tolist(), strict=True))
    last = 4
    assert {(0, last, A), (0, 2, B), (0, last, DECOY), (2, last, A), (2, last, DECOY)} <= here, "more fires than acts"
    pruned = prune(graph, 0.8, 0.98)
    result = {
        (int(graph.layer[i]), int(graph.position[i]), int(graph.latent[i]))
        for i in range(len(graph.layer))
        if pruned.nodes[i]
    }
    assert result == {(0, last, A), (2, last, A)}
    assert not pruned.nodes[graph.errors].any()
    column = {
        node: i
        for i, node in enumerate(zip(graph.layer.tolist(), graph.position.tolist(), graph.latent.tolist(), strict=True))
    }
    row = 1 + graph.rows.tolist().index(column[2, last, A])
    assert pruned.edges[row, column[0, last, A]]
    assert pruned.edges[0, column[2, last, A]]
    assert not pruned.edges[0, column[0, last, A]], "the first layer's latent acts through the second's alone"
    tokens = pruned.edges[1 + graph.rows.tolist().index(column[0, last, A]), graph.embeddings]
    assert int(tokens.int().argmax()) == last


@pytest.fixture(scope="module")
def real(gemma):
    parts, tokenizer = load_parts(gemma, torch.device("cpu")), load_tokenizer(gemma)
    transcoders = random_transcoders(range(18), d_model=640, d_hidden=256, k=6)
    return parts, tokenizer, transcoders


@pytest.mark.parametrize("crosslayer", [False, True])
def test_on_the_real_model_effects_sum_to_the_logit_difference(real, crosslayer):
    parts, tokenizer, transcoders = real
    if crosslayer:
        transcoders = random_cross_layer(range(18), d_model=640, d_hidden=256, k=6)
    tokens = torch.tensor(tokenizer("The Eiffel Tower is located in the city of")["input_ids"])
    frozen = freeze(parts, transcoders, tokens)
    targets = difference(frozen, tokenizer, " Paris", " London")
    result = attribute(frozen, targets, SETTINGS.model_copy(update={"max_latents": 200}))
    assert len(result.rows) == 200
    total = float(result.effects[0].sum() + result.constant[0])
    logits = parts.model(tokens[None]).logits[0, -1]
    expected = float(
        logits[tokenizer.convert_tokens_to_ids("▁Paris")] - logits[tokenizer.convert_tokens_to_ids("▁London")]
    )
    assert total == pytest.approx(expected, rel=1e-3)
    assert float(result.sum_errors().max()) < 1e-3


def test_an_answer_that_begins_like_its_foil_is_refused(real):
    parts, tokenizer, transcoders = real
    frozen = freeze(parts, transcoders, torch.tensor([2, 9079]))
    with pytest.raises(UserError, match="begin with the same token"):
        difference(frozen, tokenizer, " Paris", " Paris is")
