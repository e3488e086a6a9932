"""The loss metrics on the real model."""

import numpy as np
import pytest
import torch
from families_support import tiny_model
from transformers import AutoModelForCausalLM

from transcoders.core.errors import UserError
from transcoders.evaluation.clean import clean_run, load_clean, replaced_losses, save_clean
from transcoders.evaluation.loss import ModelLosses, context_batches, loss_metrics
from transcoders.evaluation.reconstruction import Prediction
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.language.head import read_head
from transcoders.language.model import load_bridge, load_tokenizer
from transcoders.language.passes import Passes
from transcoders.language.settings import HookSettings
from transcoders.language.taps import resolve_tap

TEXT = (
    "The capital of France is Paris, which lies on the river Seine.",
    "Photosynthesis turns light into chemical energy that plants can use later.",
    "In 1969 two astronauts walked on the Moon for the first time in history.",
)
SETTINGS = EvaluateSettings(bootstrap=50)


@pytest.fixture(scope="module")
def losses(gemma):
    """The losses of a clean run and of runs with 0, 1 and the MLP's own output in its place."""
    tokenizer = load_tokenizer(gemma)
    rows = [np.array(tokenizer(text)["input_ids"]) for text in TEXT]
    bridge = load_bridge(gemma, torch.device("cpu"))
    passes, head = Passes(bridge, resolve_tap(bridge, 5, HookSettings())), read_head(bridge.original_model)
    clean = clean_run(passes, head, context_batches(rows, np.arange(3), 10_000), torch.ones(bridge.cfg.d_model), 3)
    itself = replaced_losses(passes, head, clean.batches, {"itself": lambda x, y: Prediction(y, None)}, 3)
    return ModelLosses(
        itself.ce_clean,
        clean.losses.ce | itself.ce,
        clean.losses.kl | itself.kl,
        clean.losses.agreement | itself.agreement,
        itself.tokens,
    ), rows


def test_the_clean_loss_is_the_models_own(losses, gemma):
    found, rows = losses
    model = AutoModelForCausalLM.from_pretrained(gemma, dtype=torch.float32)
    for document, row in enumerate(rows):
        tokens = torch.from_numpy(row)[None]
        with torch.inference_mode():
            expected = float(model(tokens, labels=tokens).loss)
        assert float(found.ce_clean[document] / found.tokens[document]) == pytest.approx(expected, rel=1e-4)


def test_putting_the_mlp_back_changes_nothing(losses):
    metrics = loss_metrics(losses[0], "itself", SETTINGS)
    assert metrics["delta_ce"] == pytest.approx(0, abs=1e-5)
    assert metrics["loss_recovered"] == pytest.approx(1, abs=1e-4)
    assert metrics["kl"] == pytest.approx(0, abs=1e-5)
    assert metrics["top1_agreement"] == 1


def test_zeroing_the_mlp_hurts_and_recovers_nothing(losses):
    metrics = loss_metrics(losses[0], "zero", SETTINGS)
    assert metrics["loss_recovered"] == 0
    assert metrics["delta_ce"] > 0.01
    assert metrics["kl"] > 0.01
    assert metrics["loss_tokens"] == sum(len(row) - 1 for row in losses[1])


def test_contexts_are_taken_until_the_limit_and_short_ones_run_together():
    rows = [np.arange(9), np.arange(5), np.arange(3)]
    batches = context_batches(rows, np.array([2, 0, 1]), 10)
    assert sum(len(batch.document) for batch in batches) == 2
    assert batches[0].mask.sum(1).tolist() == [5, 9]
    assert batches[0].document.tolist() == [0, 2]
    assert batches[0].owner.tolist() == [0] * 4 + [2] * 8
    assert batches[0].target.tolist() == [*range(1, 5), *range(1, 9)]


def test_evaluations_start_from_what_the_file_of_the_clean_run_holds(tmp_path):
    bridge = load_bridge(tiny_model(tmp_path / "model", "gemma3_text"), torch.device("cpu"))
    passes, head = Passes(bridge, resolve_tap(bridge, 1, HookSettings())), read_head(bridge.original_model)
    rows = [np.random.default_rng(i).integers(2, 100, 3 + i % 5) for i in range(11)]  # more than a batch, with padding
    clean = clean_run(passes, head, context_batches(rows, np.arange(11) // 2, 10_000), torch.ones(32), 7)
    save_clean(tmp_path / "clean.safetensors", clean)
    loaded = load_clean(tmp_path / "clean.safetensors")
    halved = {"half": lambda x, y: Prediction(y / 2, None)}
    expected, found = (replaced_losses(passes, head, run.batches, halved, 7) for run in (clean, loaded))
    for name in ("ce_clean", "tokens"):
        assert torch.equal(getattr(found, name), getattr(clean.losses, name))
        assert torch.equal(getattr(expected, name), getattr(clean.losses, name))
        assert torch.equal(getattr(loaded.losses, name), getattr(clean.losses, name))
    assert torch.equal(loaded.losses.ce["zero"], clean.losses.ce["zero"])
    assert torch.equal(found.ce["half"], expected.ce["half"])
    assert torch.equal(found.kl["half"], expected.kl["half"])
    assert expected.tokens.tolist() == [5, 9, 8, 7, 11, 2, 0]


def test_a_damaged_clean_run_is_one_line(tmp_path):
    (tmp_path / "clean.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match=r"clean\.safetensors: not readable .* run `dvc repro clean`"):
        load_clean(tmp_path / "clean.safetensors")
