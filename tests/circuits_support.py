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
