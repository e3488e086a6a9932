"""The loss metrics on the real model."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from transcoders.evaluation.loss import context_batches, loss_metrics, model_losses
from transcoders.evaluation.predictors import constant
from transcoders.evaluation.reconstruction import Prediction
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.language.model import load_bridge, load_tokenizer
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
    tokenizer = load_tokenizer(gemma)
    rows = [np.array(tokenizer(text)["input_ids"]) for text in TEXT]
    bridge = load_bridge(gemma, torch.device("cpu"))
    zero = torch.zeros(bridge.cfg.d_model)
    replacements = {
        "zero": constant(zero),
        "mean": constant(zero + 1.0),
        "itself": lambda x, y: Prediction(y, None),
    }
    batches = context_batches(rows, np.arange(3), 10_000)
    return model_losses(bridge, resolve_tap(bridge, 5, HookSettings()), batches, replacements, 3), rows


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


def test_contexts_are_taken_until_the_limit():
    rows = [np.arange(5), np.arange(9), np.arange(3)]
    batches = context_batches(rows, np.array([2, 0, 1]), 6)
    assert sum(len(batch.document) for batch in batches) == 2
    assert batches[0].mask.sum(1).tolist() == [5, 9]
    assert batches[0].document.tolist() == [2, 0]
