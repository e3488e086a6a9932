"""The Boolean chain of the benchmarks is the computation that it claims, and skipped hops are counted where known."""

import pytest
import torch
from circuits_support import zero_cross_layer

from benchmarks import chain
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.transcoder import Transcoder
from transcoders.training.settings import VariantSettings


@pytest.fixture(scope="module")
def made():
    model = chain.chain_of(0)
    return model, chain.activations(model)


def reads(of, needed):
    """Return encoder rows and bias of latents that fire where ``needed`` of the features that they read are there."""
    return of.unflatten(1, (-1, needed)).sum(2).flatten(0, 1), 0.6 - needed


def test_the_model_computes_b_of_a_and_c_of_b(made):
    model, (_, y) = made
    of_layer, fires = y.unflatten(1, (chain.LAYERS, -1)), model.fires.float()
    expected = [fires, fires.unflatten(2, (2, 2)).prod(3), fires.prod(2, keepdim=True)]
    for layer, (directions, truth) in enumerate(zip(model.features, expected, strict=True)):
        found = torch.einsum("vd,cad->vca", of_layer[:, layer], directions)
        torch.testing.assert_close(found[1:], truth[1:], atol=1e-5, rtol=0)
        torch.testing.assert_close(found.square().sum((1, 2)), of_layer[:, layer].square().sum(1), atol=1e-3, rtol=1e-4)


def test_latents_that_are_the_chain_skip_no_hop(made):
    model, rows = made
    transcoders = {}
    for layer, (source, needed) in enumerate(zip((model.tokens, *model.features), (1, 2, 2), strict=False)):
        W_enc, bias = reads(source, needed)
        t = Transcoder(TranscoderConfig(encoder="relu", d_in=64, d_out=64, d_hidden=len(W_enc), k=1))
        t.W_enc.data, t.W_dec.data = W_enc, 2 * model.features[layer].flatten(0, 1)
        t.b_enc.data.fill_(bias)
        transcoders[layer] = t.requires_grad_(False)
    result = chain.judge(model, transcoders, rows, prompts=5)
    assert result.skipped_hops == 0
    assert result.path_length == pytest.approx(chain.DEPTH, abs=1e-3)
    assert result.nmse < 0.2


def test_latents_of_the_first_layer_that_write_b_and_c_skip_all(made):
    model, rows = made
    t = zero_cross_layer(range(3), 64, 21, 1, encoder="relu", input_scales=(1.0,) * 3, output_scales=(1.0,) * 3)
    t.requires_grad_(False)
    first = t.sources[0]
    W_dec, start = first.W_dec.view(21, 3, 64), 0
    for layer, (needed, directions) in enumerate(zip((1, 2, 4), model.features, strict=True)):
        W_enc, bias = reads(model.tokens, needed)
        latents = slice(start, start + len(W_enc))
        first.W_enc[latents], first.b_enc[latents], W_dec[latents, layer] = W_enc, bias, 2 * directions.flatten(0, 1)
        start = latents.stop
    result = chain.judge(model, t, rows, prompts=5)
    assert result.skipped_hops == 1
    assert result.path_length == pytest.approx(2, abs=1e-3)


def test_trained_across_layers_latents_skip_hops_that_single_ones_cannot(made, monkeypatch):
    model, rows = made
    per_layer, across, own = (
        chain.judge(model, chain.train(rows, VariantSettings(reach=reach), 50_000, 0), rows, prompts=5)
        for reach in (None, "all", 0)
    )
    assert per_layer.skipped_hops == own.skipped_hops == 0
    assert across.skipped_hops > 0.1
    assert across.path_length < per_layer.path_length
