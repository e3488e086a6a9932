"""The test documents as the evaluation wants them."""

import torch

from stages.common.inputs import Inputs, contexts_of_test_documents
from transcoders.activations.reader import ordered_batches
from transcoders.evaluation.loss import context_batches
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.evaluation.suite import HeldOut
from transcoders.language.taps import tap_of


def open_held_out(inputs: Inputs, settings: EvaluateSettings, output_scale: float, device: torch.device) -> HeldOut:
    """Open stored tokens and whole contexts of the test documents; ``output_scale`` is the unit of NMSE."""
    test = inputs.documents["test"]
    tokens, document = contexts_of_test_documents(inputs)
    return HeldOut(
        batches=lambda: ordered_batches(inputs.store, test, settings.tokens, device),
        contexts=context_batches(tokens, document, settings.loss_tokens),
        documents=len(test),
        tap=tap_of(inputs.store.attributes),
        y_mean=torch.tensor(inputs.store.attributes["mlp_out_mean"], dtype=torch.float32),
        output_scale=output_scale,
    )
