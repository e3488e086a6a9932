"""The test documents as the evaluation wants them."""

from typing import Any

import torch

from stages.common.inputs import Inputs, contexts_of_test_documents
from stages.common.paths import clean_of
from transcoders.activations.reader import ordered_batches
from transcoders.evaluation.clean import CleanRun, clean_run, load_clean
from transcoders.evaluation.likelihood import takes_bf16
from transcoders.evaluation.loss import context_batches
from transcoders.evaluation.settings import EvaluateSettings, Precision
from transcoders.evaluation.suite import HeldOut
from transcoders.language.head import read_head
from transcoders.language.passes import Passes
from transcoders.language.taps import tap_of


def run_clean(inputs: Inputs, bridge: Any, loss_tokens: int, precision: Precision) -> CleanRun:
    """Run the model on the first contexts of the test documents, clean and with the layer's MLP out of action."""
    attributes = inputs.store.attributes
    passes, head = Passes(bridge, tap_of(attributes)), read_head(bridge.original_model)
    contexts = context_batches(*contexts_of_test_documents(inputs), loss_tokens)
    y_mean = torch.tensor(attributes["mlp_out_mean"], dtype=torch.float32)
    documents = len(inputs.documents["test"])
    return clean_run(passes, head, contexts, y_mean, documents, bf16=takes_bf16(precision, passes.device))


def open_held_out(
    inputs: Inputs,
    settings: EvaluateSettings,
    output_scale: float,
    device: torch.device,
    clean: CleanRun | None = None,
) -> HeldOut:
    """Open stored tokens of the test documents, and the layer's clean run, from its file if it is not given.

    ``output_scale`` is the unit of NMSE.
    """
    test, tap = inputs.documents["test"], tap_of(inputs.store.attributes)
    return HeldOut(
        batches=lambda: ordered_batches(inputs.store, test, settings.tokens, device),
        clean=clean or load_clean(clean_of(tap.layer)),
        documents=len(test),
        tap=tap,
        output_scale=output_scale,
    )
