"""The complete evaluation, the same for ours, for baselines and for others' transcoders."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from transcoders.activations.reader import LabelledBatch
from transcoders.evaluation.loss import ContextBatch, loss_metrics, model_losses
from transcoders.evaluation.predictors import constant
from transcoders.evaluation.reconstruction import Predictor, Reconstruction, reconstruction
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.language.taps import Tap


class Candidate(NamedTuple):
    """Hold something that predicts MLP outputs, and how many latents it has (0: none)."""

    predict: Predictor
    d_hidden: int


class HeldOut(NamedTuple):
    """Hold the text that nothing was trained on."""

    batches: Callable[[], Iterable[LabelledBatch]]
    contexts: list[ContextBatch]
    documents: int
    tap: Tap
    """Where the activations were read, and predictions are put back."""
    y_mean: torch.Tensor
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
    """Evaluate ``candidates`` on the same held-out tokens; clean, zero and mean runs are shared."""
    replacements = {
        "zero": constant(torch.zeros_like(held_out.y_mean)),
        "mean": constant(held_out.y_mean),
        **{name: candidate.predict for name, candidate in candidates.items()},
    }
    losses = model_losses(bridge, held_out.tap, held_out.contexts, replacements, held_out.documents)
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
