"""The complete evaluation, the same for ours, for baselines and for others' transcoders."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from transcoders.activations.reader import LabelledBatch
from transcoders.evaluation.clean import CleanRun, replaced_losses
from transcoders.evaluation.likelihood import takes_bf16
from transcoders.evaluation.loss import loss_metrics
from transcoders.evaluation.reconstruction import Predictor, Reconstruction, reconstruction
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.language.head import read_head
from transcoders.language.passes import Passes
from transcoders.language.taps import Tap


class Candidate(NamedTuple):
    """Hold something that predicts MLP outputs, and how many latents it has (0: none)."""

    predict: Predictor
    d_hidden: int


class HeldOut(NamedTuple):
    """Hold the text that nothing was trained on."""

    batches: Callable[[], Iterable[LabelledBatch]]
    clean: CleanRun
    documents: int
    tap: Tap
    """Where the activations were read, and predictions are put back."""
    output_scale: float
    """The unit of NMSE: ``y / output_scale`` has mean squared length d_out on training tokens."""


class Evaluation(NamedTuple):
    """Hold all metrics of one candidate, its reconstruction (firing counts), and the sums they are made of."""

    metrics: dict[str, float]
    reconstruction: Reconstruction
    documents: dict[str, torch.Tensor]
    """Sums over each document's tokens: of the reconstruction, and of the losses with and without it."""


def evaluate(
    candidates: Mapping[str, Candidate], held_out: HeldOut, bridge: Any, settings: EvaluateSettings
) -> dict[str, Evaluation]:
    """Evaluate ``candidates`` on the same held-out tokens."""
    passes, head = Passes(bridge, held_out.tap), read_head(bridge.original_model)
    predictors = {name: candidate.predict for name, candidate in candidates.items()}
    bf16 = takes_bf16(settings.precision, passes.device)
    clean = held_out.clean
    replaced = replaced_losses(passes, head, clean.batches, predictors, held_out.documents, bf16=bf16)
    losses = replaced._replace(ce={**clean.losses.ce, **replaced.ce})
    result = {}
    for name, candidate in candidates.items():
        reconstructed = reconstruction(
            candidate.predict,
            held_out.batches(),
            documents=held_out.documents,
            d_hidden=candidate.d_hidden,
            output_scale=held_out.output_scale,
            settings=settings,
        )
        documents = {
            **reconstructed.documents,
            "loss_tokens": losses.tokens,
            "ce_clean": losses.ce_clean,
            "ce_zero": losses.ce["zero"],
            "ce_replaced": losses.ce[name],
        }
        metrics = {**reconstructed.metrics, **loss_metrics(losses, name, settings)}
        result[name] = Evaluation(metrics, reconstructed, documents)
    return result
