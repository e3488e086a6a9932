"""The test documents as the evaluation wants them."""

from pathlib import Path

import numpy as np
import torch

from stages.runs import Inputs
from transcoders.activations.reader import ordered_batches
from transcoders.core.tables import read_parquet
from transcoders.evaluation.loss import context_batches
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.evaluation.suite import HeldOut
from transcoders.language.taps import Tap

CONTEXTS = Path("data/contexts.parquet")


def open_held_out(inputs: Inputs, settings: EvaluateSettings, output_scale: float, device: torch.device) -> HeldOut:
    """Stored tokens and whole contexts of the test documents."""
    test = inputs.documents["test"]
    contexts = read_parquet(CONTEXTS, "collect", ["document", "tokens"])
    contexts = contexts[test[contexts["document"]]]
    return HeldOut(
        batches=lambda: ordered_batches(inputs.store, test, settings.tokens, device),
        contexts=context_batches(list(contexts["tokens"]), np.asarray(contexts["document"]), settings.loss_tokens),
        documents=len(test),
        y_mean=torch.tensor(inputs.store.attributes["mlp_out_mean"], dtype=torch.float32),
        output_scale=output_scale,
    )


def tap_of(inputs: Inputs) -> Tap:
    """Where the stored activations were read."""
    names = ("layer", "hook_in", "hook_out", "hf_hook_in", "hf_hook_out")
    return Tap(**{name: inputs.store.attributes[name] for name in names})
