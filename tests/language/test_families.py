"""On tiny models of many families: x, y, their true names, the recomputed y and the losses are the model's own."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from families_support import FAMILIES, MIXTURES, POSITIONS, VOCABULARY, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from transcoders.activations.recompute import load_mlp
from transcoders.core.errors import UserError
from transcoders.evaluation.clean import clean_run
from transcoders.evaluation.loss import context_batches
from transcoders.language.forward import forward
from transcoders.language.head import read_head
from transcoders.language.model import load_bridge
from transcoders.language.passes import Passes
from transcoders.language.settings import HookSettings
from transcoders.language.taps import Tap, resolve_tap

CPU = torch.device("cpu")
LAYER = 1


class Family(NamedTuple):
    """A tiny model as we load it, and as Hugging Face does."""

    kind: str
    folder: Path
    bridge: object
    tap: Tap
    model: torch.nn.Module


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tiny_model(tmp_path_factory.mktemp("model") / request.param, request.param)
    bridge = load_bridge(folder, CPU)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Family(request.param, folder, bridge, resolve_tap(bridge, LAYER, HookSettings()), model)


def tokens(length: int = 12) -> Tensor:
    return torch.randint(2, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(0))


def at(model: torch.nn.Module, name: str, ids: Tensor) -> Tensor:
    """Return what stands at ``name``, such as ``model.layers.1.mlp.output``, in a plain forward pass."""
    path, _, side = name.rpartition(".")
    caught = []

    def catch(module, args, options, output):
        value = output if side == "output" else (args or tuple(options.values()))
        caught.append((value[0] if isinstance(value, tuple) else value).clone())

    handle = model.get_submodule(path).register_forward_hook(catch, with_kwargs=True)
    with torch.inference_mode():
        model(ids, use_cache=False)
    handle.remove()
    return caught[0]


def difference(values: Tensor, expected: Tensor) -> float:
    return float((values.reshape(-1) - expected.reshape(-1)).norm() / expected.norm())


def read(family: Family) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        caught = forward(family.bridge, tokens(), [family.tap])
    return caught[family.tap.hook_in], caught[family.tap.hook_out]


def test_x_and_y_are_what_the_named_modules_of_the_plain_model_have(family):
    x, y = read(family)
    assert difference(x, at(family.model, family.tap.hf_hook_in, tokens())) < 1e-6
    if family.tap.hf_hook_out is not None:
        assert difference(y, at(family.model, family.tap.hf_hook_out, tokens())) < 1e-6
    made = at(family.model, f"{family.tap.mlp[-1]}.output", tokens())
    assert difference(y, family.tap.mlp_scale * made) < 1e-6
    assert (family.tap.hf_hook_out is None) == (family.kind in ("granite", "granitemoe"))


def test_recomputed_y_is_the_same_or_refused_in_one_line(family):
    if family.kind in MIXTURES - {"gpt_oss"}:  # whose files hold each expert's weights apart
        with pytest.raises(UserError, match=r"recomputed needs the weights of .* use collect\.outputs: stored"):
            load_mlp(family.folder, family.tap.mlp, family.tap.mlp_scale, CPU)
        return
    x, y = read(family)
    mlp = load_mlp(family.folder, family.tap.mlp, family.tap.mlp_scale, CPU)
    assert difference(mlp(x.flatten(0, 1)), y) < 1e-5


def test_the_losses_are_the_models_own(family):
    passes, head = Passes(family.bridge, family.tap), read_head(family.bridge.original_model)
    batches = context_batches(list(tokens().numpy()), np.arange(2), 100)
    losses = clean_run(passes, head, batches, torch.zeros(32), 2).losses
    with torch.inference_mode():
        expected = float(family.model(tokens(), labels=tokens()).loss)
    assert float(losses.ce_clean.sum() / losses.tokens.sum()) == pytest.approx(expected, rel=1e-5)


def test_a_run_that_starts_at_the_block_is_the_complete_one_bit_for_bit(family):
    passes = Passes(family.bridge, family.tap)
    assert passes.resumes
    clean = passes.clean(tokens())
    x, y = passes.mlp(tokens(), clean.entering)
    other = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    resumed, again = passes.replaced(tokens(), clean.entering, other), passes.replaced(tokens(), clean.entering, y)
    torch.testing.assert_close(again, clean.final, rtol=1e-5, atol=1e-5)
    assert difference(resumed, clean.final) > 1e-2
    passes.resumes = False
    for part, expected in zip((x, y), passes.mlp(tokens(), clean.entering), strict=True):
        assert torch.equal(part, expected)
    assert torch.equal(passes.replaced(tokens(), clean.entering, other), resumed)
    passes.resumes = True
    with torch.inference_mode():  # and nothing of it stays behind
        assert torch.equal(family.bridge.original_model.base_model(tokens()).last_hidden_state, clean.final)


def test_the_longest_context_is_read_too(family):
    with torch.inference_mode():
        assert forward(family.bridge, tokens(POSITIONS), [family.tap])[family.tap.hook_out].isfinite().all()
