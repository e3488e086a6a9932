"""Small real inputs for tests: a model, stores with known content."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

from transcoders.activations import store
from transcoders.core.places import Place


def make_store(
    path: Place,
    x: Tensor,
    y: Tensor,
    *,
    dtype: str = "float32",
    documents: np.ndarray | None = None,
    codec: str | None = None,
    outputs: str = "stored",
) -> Place:
    """A complete store of the rows of ``x`` and ``y``; token ids are the row numbers."""
    rows, d_model = x.shape
    store.create(path, d_model, dtype, rows, {}, codec=codec, outputs=outputs)
    group = store.opened(path)
    arrays = store.to_storage("mlp_in", x, dtype, "a test")
    if outputs == "stored":
        arrays |= store.to_storage("mlp_out", y, dtype, "a test")
    for name, values in arrays.items():
        group[name][:] = values
    group["token"][:] = np.arange(rows)
    group["document"][:] = np.zeros(rows) if documents is None else documents
    group["position"][:] = np.arange(rows)
    group["context"][:] = np.zeros(rows)
    attributes = {
        "d_model": d_model,
        "layer": 0,
        "model": "m",
        "model_hash": "h" * 64,
        "hook_in": "i",
        "hook_out": "o",
        "hf_hook_in": "hi",
        "hf_hook_out": "ho",
        "gain_applied": True,
        "mlp": ["m"],
        "mlp_scale": 1.0,
        "context_start": "<bos>",
        "prepend_bos": True,
        "mlp_out_mean": y.mean(0).tolist(),
        "mlp_out_mean_square": float(y.square().sum(1).mean()),
    }
    store.finish(path, rows, attributes)
    return path


def tiny_gemma(folder: Path) -> Path:
    """A Gemma 3 with 3 layers, random weights and the numbers below 100 as its words."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=100,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    Gemma3ForCausalLM(config).save_pretrained(folder)
    return save_numbers_tokenizer(folder)


def save_numbers_tokenizer(folder: Path, **special: str | None) -> Path:
    """Save a tokenizer whose words are the numbers below 100; 1 begins texts and 0 ends them."""
    words = Tokenizer(WordLevel({str(i): i for i in range(100)}, unk_token="0"))
    words.pre_tokenizer = Whitespace()
    tokens = {"bos_token": "1", "eos_token": "0", "pad_token": "0"} | special
    PreTrainedTokenizerFast(tokenizer_object=words, **tokens).save_pretrained(folder)
    return folder
