"""Runs around one MLP: where a model is not a chain of blocks, every run is a complete one."""

import pytest
import torch
from families_support import tiny_model

from transcoders.language.model import load_bridge
from transcoders.language.passes import Passes
from transcoders.language.settings import HookSettings
from transcoders.language.taps import resolve_tap

TOKENS = torch.randint(2, 100, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def bridge(tmp_path):
    return load_bridge(tiny_model(tmp_path / "model", "llama", num_hidden_layers=3), torch.device("cpu"))


def test_a_block_that_reads_more_than_the_block_below_gets_complete_runs(bridge):
    model, seen = bridge.original_model.model, []
    model.layers[0].register_forward_hook(lambda block, arguments, output: seen.append(output))
    model.layers[2].register_forward_hook(lambda block, arguments, output: output + seen.pop().tanh())
    passes = Passes(bridge, resolve_tap(bridge, 2, HookSettings()))
    assert not passes.resumes
    clean = passes.clean(TOKENS)
    assert torch.equal(clean.final, model(TOKENS).last_hidden_state)
    _, y = passes.mlp(TOKENS, clean.entering)
    torch.testing.assert_close(passes.replaced(TOKENS, clean.entering, y), clean.final)


def test_the_first_block_has_nothing_below_it_and_the_last_nothing_above(bridge):
    for layer, resumes in ((0, False), (2, True)):
        passes = Passes(bridge, resolve_tap(bridge, layer, HookSettings()))
        assert passes.resumes is resumes
        clean = passes.clean(TOKENS)
        _, y = passes.mlp(TOKENS, clean.entering)
        torch.testing.assert_close(passes.replaced(TOKENS, clean.entering, y), clean.final)
        zeroed = passes.replaced(TOKENS, clean.entering, torch.zeros_like(y))
        assert torch.equal(zeroed[:, 0], clean.final[:, 0])  # BOS keeps its own
        assert not torch.allclose(zeroed[:, 1:], clean.final[:, 1:])


def test_a_run_that_fails_leaves_the_model_as_it_was(bridge):
    passes = Passes(bridge, resolve_tap(bridge, 1, HookSettings()))
    clean = passes.clean(TOKENS)
    with pytest.raises(RuntimeError):
        passes.replaced(TOKENS, clean.entering, torch.zeros(2, 9, 5))
    assert torch.equal(passes.clean(TOKENS).final, clean.final)
