"""Input-independent connections against one latent's effect on another in a run."""

import pytest
import torch
from circuits_support import SETTINGS, random_cross_layer, random_transcoders, tiny_gemma
from test_attribution import TOKENS, difference_of

from transcoders.circuits.attribution import attribute
from transcoders.circuits.connections import strongest, virtual_weights
from transcoders.circuits.frozen import freeze
from transcoders.circuits.parts import take_apart
from transcoders.circuits.writers import writers_of


@pytest.mark.parametrize("make", [random_transcoders, random_cross_layer])
def test_without_attention_a_direct_effect_is_value_times_scale_times_connection(make):
    model = tiny_gemma()
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
    parts, transcoders = take_apart(model), make()
    writers = writers_of(transcoders)
    frozen = freeze(parts, transcoders, TOKENS)
    graph = attribute(frozen, difference_of(frozen), SETTINGS)
    checked = 0
    for row, column in enumerate(graph.rows.tolist()):
        to = int(graph.layer[column])
        position = int(graph.position[column])
        scale = frozen.steps[to].mlp_in[position] / parts.layers[to].mlp_norm.gain
        for source in torch.nonzero((graph.layer < to) & (graph.position == position))[:, 0].tolist():
            weights = virtual_weights(parts, writers[int(graph.layer[source])], writers[to], to)
            expected = weights[graph.latent[column], graph.latent[source]] * scale[0] * graph.value[source]
            torch.testing.assert_close(
                graph.effects[1 + row, source], expected, rtol=1e-4, atol=1e-5, check_dtype=False
            )
            checked += 1
    assert checked > 50


@pytest.mark.parametrize("make", [random_transcoders, random_cross_layer])
def test_the_strongest_connections_are_those_of_all_earlier_layers(make):
    parts, transcoders = take_apart(tiny_gemma()), make()
    writers = writers_of(transcoders)
    layer, latent, weight = strongest(parts, transcoders, 3, 4)
    dense = torch.stack([virtual_weights(parts, writers[n], writers[3], 3) for n in range(3)])
    expected = dense.permute(1, 0, 2).flatten(1).abs().topk(4, dim=1).values
    torch.testing.assert_close(weight.abs(), expected)
    rows = torch.arange(40)[:, None]
    torch.testing.assert_close(dense[layer, rows, latent], weight)
    assert strongest(parts, transcoders, 0, 4).weight.shape == (40, 0)
