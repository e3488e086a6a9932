"""Tiny models of the families that the docs name (docs/reliability.md), with random weights."""

from pathlib import Path
from typing import Any

import torch
from tests_support import save_numbers_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 100
POSITIONS = 64
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GROUPED = {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL_EXPERTS = {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma": GROUPED,
    "gemma2": GROUPED,
    "gemma3_text": GROUPED,
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "mistral": GROUPED,
    "phi": {"intermediate_size": 64},
    "phi3": GROUPED,
    "gpt2": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {"intermediate_size": 64},
    "gptj": {"rotary_dim": 4},
    "gpt_bigcode": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {},
    "falcon": {},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": POSITIONS},
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": GROUPED,
    "granite": {**GROUPED, "residual_multiplier": 0.5, "logits_scaling": 4.0},
    "cohere": {**GROUPED, "logit_scale": 0.0625},
    "cohere2": {**GROUPED, "logit_scale": 0.0625},
    "glm": GROUPED,
    "glm4": GROUPED,
    "stablelm": GROUPED,
    "starcoder2": GROUPED,
    "nemotron": GROUPED,
    "smollm3": GROUPED,
    "exaone4": GROUPED,
    "ernie4_5": GROUPED,
    "seed_oss": GROUPED,
    "mixtral": LOCAL_EXPERTS,
    "gpt_oss": LOCAL_EXPERTS,
    "granitemoe": {**LOCAL_EXPERTS, "residual_multiplier": 0.5},
    "olmoe": EXPERTS,
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": EXPERTS,
    "deepseek_v3": {
        "intermediate_size": 64,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
}
MIXTURES = {"deepseek_v3", "mixtral", "gpt_oss", "granitemoe", "olmoe", "qwen2_moe", "qwen3_moe"}


def tiny_model(folder: Path, kind: str, **changes: Any) -> Path:
    """Save a model of 2 layers whose type is ``kind``, and the tokenizer whose words are the numbers below 100."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES | FAMILIES[kind] | changes)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():  # far from what it starts as: gains of 1 and biases of 0 hide mistakes
            weight.copy_(6 * weight if weight.ndim > 1 else weight + 0.2 * torch.randn_like(weight))
    model.save_pretrained(folder)
    save_numbers_tokenizer(folder)
    return folder
