"""The MLP alone, read from the files of a model."""

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from transcoders.activations.recompute import load_mlp
from transcoders.core.errors import UserError

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


@pytest.mark.parametrize(
    ("model", "hook", "scale"),
    [
        (Gemma3ForCausalLM(Gemma3TextConfig(**SIZES)), "post_feedforward_layernorm", 1),
        (LlamaForCausalLM(LlamaConfig(**SIZES, mlp_bias=True)), "mlp", 0.5),
    ],
)
@pytest.mark.parametrize("shard_size", ["5GB", "10KB"])
def test_it_gives_what_the_model_gives_there(tmp_path, model, hook, scale, shard_size):
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.eval().to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "10KB")
    model.float()
    caught = {}
    block = model.model.layers[1]
    block.mlp.register_forward_pre_hook(lambda module, inputs: caught.update(x=inputs[0]))
    getattr(block, hook).register_forward_hook(lambda module, inputs, output: caught.update(y=output))
    with torch.no_grad():
        model(torch.arange(10)[None])
        modules = [f"model.layers.1.{name}" for name in dict.fromkeys(("mlp", hook))]
        y = load_mlp(tmp_path, modules, scale, CPU)(caught["x"][0])
    assert torch.allclose(y, scale * caught["y"][0], rtol=1e-5, atol=1e-6)
    assert not y.requires_grad


def test_a_model_that_names_its_mlp_otherwise_is_told(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"recomputed needs the weights of model\.layers\.1\.mlp alone.*outputs: stored"
    ):
        load_mlp(tmp_path, ["model.layers.1.mlp"], 1, CPU)
