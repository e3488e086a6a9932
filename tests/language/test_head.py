"""Logits are the model's own, or the model is refused (tests/language/test_families.py has the families)."""

import pytest
import torch
from families_support import tiny_model
from torch import nn

from transcoders.core.errors import UserError
from transcoders.language.head import read_head
from transcoders.language.model import load_model

TOKENS = torch.randint(2, 100, (1, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("kind", "changes", "scale", "cap", "has_bias"),
    [
        ("llama", {}, 1.0, None, False),
        ("cohere", {"logit_scale": 0.0625}, 0.0625, None, False),
        ("granite", {"logits_scaling": 4.0}, 0.25, None, False),
        ("gemma2", {"final_logit_softcapping": 3.0}, 1.0, 3.0, False),
        ("phi", {}, 1.0, None, True),
    ],
)
def test_any_part_of_the_logits_is_the_models_own(tmp_path, kind, changes, scale, cap, has_bias):
    model = load_model(tiny_model(tmp_path / "model", kind, **changes), torch.device("cpu"))
    head = read_head(model)
    assert head.scale == pytest.approx(scale, rel=1e-6)
    assert head.cap == cap
    assert (head.bias is not None) == has_bias
    with torch.inference_mode():
        states, expected = model.base_model(TOKENS).last_hidden_state[0], model(TOKENS).logits[0]
    torch.testing.assert_close(head.logits(states, slice(30, 71)), expected[:, 30:71], rtol=1e-5, atol=1e-5)


def test_a_head_that_does_something_else_is_refused(tmp_path):
    model = load_model(tiny_model(tmp_path / "model", "llama"), torch.device("cpu"))

    class Squaring(nn.Linear):
        def forward(self, states):
            return super().forward(states).square()

    squaring = Squaring(32, 100, bias=False)
    squaring.weight = model.lm_head.weight
    model.lm_head = squaring
    with pytest.raises(UserError, match="LlamaForCausalLM does more to its final states than"):
        read_head(model)
