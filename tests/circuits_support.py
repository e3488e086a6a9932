"""Tiny language models and transcoders for them, in float64."""

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from transcoders.circuits.settings import CircuitSettings
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.crosslayer.config import CrossLayerConfig
from transcoders.dictionary.crosslayer.transcoder import CrossLayerTranscoder
from transcoders.dictionary.transcoder import Transcoder

D_MODEL, LAYERS, VOCABULARY = 16, 4, 50
SETTINGS = CircuitSettings(batch_size=7)


def tiny_gemma(seed=0):
    torch.manual_seed(seed)
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=D_MODEL,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        query_pre_attn_scalar=6,
        sliding_window=3,
        layer_types=["sliding_attention", "full_attention"] * 2,
        attn_implementation="eager",
    )
    return randomised(Gemma3ForCausalLM(config))


def tiny_llama(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=D_MODEL,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        attn_implementation="eager",
    )
    return randomised(LlamaForCausalLM(config))


def randomised(model):
    model = model.double().eval()
    for name, value in model.named_parameters():
        torch.nn.init.normal_(value, 1.0 if "norm" in name else 0.0, 0.3)
    return model


def random_transcoders(layers=range(LAYERS), d_model=D_MODEL, d_hidden=40, k=5, seed=0, **config):
    torch.manual_seed(seed)
    result = {}
    for layer in layers:
        model = Transcoder(
            TranscoderConfig(
                d_in=d_model, d_out=d_model, d_hidden=d_hidden, k=k, input_scale=1.7, output_scale=2.3, **config
            )
        )
        for value in model.parameters():
            torch.nn.init.normal_(value, std=0.3)
        if "threshold" in dict(model.named_parameters()):
            model.threshold.data.abs_()
        result[layer] = model.requires_grad_(False)
    return result


def random_cross_layer(layers=range(LAYERS), d_model=D_MODEL, d_hidden=40, k=5, seed=0, **config):
    """Return a cross-layer transcoder whose layers have units of their own."""
    model = zero_cross_layer(layers, d_model, d_hidden, k, **config)
    torch.manual_seed(seed)
    for name, value in model.named_parameters():
        if not name.startswith("sources") or "b_dec" not in name:
            torch.nn.init.normal_(value, std=0.3)
        if "threshold" in name:
            value.data.abs_()
    return model.requires_grad_(False)


def zero_cross_layer(layers=range(LAYERS), d_model=D_MODEL, d_hidden=40, k=5, **config):
    units = {
        "input_scales": tuple(1.7 + 0.1 * layer for layer in layers),
        "output_scales": tuple(2.3 - 0.1 * layer for layer in layers),
    }
    sizes = {"layers": tuple(layers), "d_model": d_model, "d_hidden": d_hidden, "k": k}
    return CrossLayerTranscoder(CrossLayerConfig(**(sizes | units | config)))


def joined(singles):
    """Return the cross-layer transcoder of these transcoders by layer, whose latents write to their own layer alone."""
    first, d = next(iter(singles.values())).config, D_MODEL
    units = {f"{side}_scales": (getattr(first, f"{side}_scale"),) * len(singles) for side in ("input", "output")}
    config = {"encoder": first.encoder, "skip": first.skip, "k": first.k, **units}
    model = zero_cross_layer(tuple(singles), d, first.d_hidden, **config).requires_grad_(False)
    for place, (source, single) in enumerate(zip(model.sources, singles.values(), strict=True)):
        for name, value in single.named_parameters():
            if name == "W_dec":
                source.W_dec[:, :d] = value
            elif name == "b_dec":
                model.b_dec[place * d : (place + 1) * d] = value
            elif name == "W_skip":
                model.W_skip[place] = value
            else:
                getattr(source, name).copy_(value)
    return model
