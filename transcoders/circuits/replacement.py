"""The model with all its MLPs replaced at once: how well it still predicts, and what single latents do in it."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from transcoders.circuits.frozen import Frozen
from transcoders.circuits.parts import ModelParts, Replacement, replaced
from transcoders.circuits.writers import Transcoders, Waiting, replacements_of
from transcoders.core.files import rounded
from transcoders.evaluation.likelihood import compare, reference
from transcoders.evaluation.loss import ContextBatch, ModelLosses, loss_metrics, no_losses
from transcoders.evaluation.settings import EvaluateSettings

CASES_PER_BATCH = 16


def replaced_metrics(losses: ModelLosses, layers: int, settings: EvaluateSettings) -> dict[str, float]:
    """Return what the losses with the MLPs of ``layers`` layers replaced come to."""
    with_errors = float(losses.ce["with_errors"].sum()) / float(losses.tokens.sum())
    metrics = loss_metrics(losses, "replaced", settings)
    return rounded({"layers": float(layers), **metrics, "ce_with_errors": with_errors})


@torch.inference_mode()
def replaced_losses(
    parts: ModelParts,
    transcoders: Transcoders,
    means: Mapping[int, Float[Tensor, "d_model"]],
    batches: list[ContextBatch],
    documents: int,
) -> ModelLosses:
    """Measure the loss of the model with every MLP that has a transcoder replaced, in four ways.

    ``replaced``: by the transcoders alone. ``with_errors``: plus what each misses on the clean run, so that
    the clean loss must come out. ``zero``, ``mean``: by constants.
    """
    losses = no_losses(["replaced", "with_errors", "zero", "mean"], documents)
    body, ways = parts.model.base_model, replacements_of(transcoders)
    with tqdm(desc="all MLPs replaced", total=sum(batch.size for batch in batches), unit="tok") as bar:
        for batch in batches:
            tokens, predicted = batch.tokens.to(parts.device), batch.mask[:, 1:].to(parts.device)

            def final(by: Mapping[int, Replacement], tokens: Tensor = tokens, mask: Tensor = predicted) -> Tensor:
                with replaced(parts, by):
                    return body(tokens, use_cache=False).last_hidden_state[:, :-1][mask]

            clean, errors = _clean_run(parts, ways, tokens)
            states = {
                "replaced": final(ways),
                "with_errors": final({n: _plus(replace, errors[n]) for n, replace in ways.items()}),
                "zero": final(dict.fromkeys(ways, torch.zeros_like)),
                "mean": final({n: _constant(means[n]) for n in ways}),
            }
            predictions = reference(parts.head, clean[:, :-1][predicted], tokens[:, 1:][predicted])
            losses.add_clean_(predictions.ce, batch)
            for name, run in states.items():
                losses.add_(name, compare(parts.head, predictions, run), batch)
            bar.update(batch.size)
    return losses


def _clean_run(parts: ModelParts, ways: Mapping[int, Replacement], tokens: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """Return the final states of the untouched model, and what ``ways`` miss of each MLP's output there."""
    predictions: dict[int, Tensor] = {}
    errors: dict[int, Tensor] = {}

    def predict(number: int) -> Any:
        def hook(module: Any, arguments: Any, x: Tensor) -> None:
            predictions[number] = ways[number](x)

        return hook

    def subtract(number: int) -> Any:
        def hook(module: Any, arguments: Any, y: Tensor) -> None:
            errors[number] = y - predictions.pop(number)

        return hook

    with ExitStack() as stack:
        for number in ways:
            layer = parts.layers[number]
            stack.callback(layer.mlp_in.register_forward_hook(predict(number)).remove)
            stack.callback(layer.mlp_out.register_forward_hook(subtract(number)).remove)
        return parts.model.base_model(tokens, use_cache=False).last_hidden_state, errors


def _plus(replace: Replacement, error: Tensor) -> Replacement:
    return lambda x: replace(x) + error


def _constant(value: Tensor) -> Replacement:
    return lambda x: value.to(x).expand_as(x)


@torch.inference_mode()
def run_with_latents(
    frozen: Frozen, directions: Float[Tensor, "outputs d_model"], present: Bool[Tensor, "cases active"]
) -> Float[Tensor, "cases outputs"]:
    """Run the live model, attention and norms included, with only ``present`` of the active latents.

    A latent's value is computed from what reaches it (no other ones fire); errors stay as they are.
    """
    counts = [0 if step.site is None else len(step.site.latent) for step in frozen.steps]
    outputs = []
    for cases in present.split(CASES_PER_BATCH):
        masks, waiting = cases.split(counts, dim=1), Waiting()
        ways = {n: _with_latents(frozen, n, part, waiting) for n, part in enumerate(masks)}
        with replaced(frozen.parts, ways):
            tokens = frozen.tokens.expand(len(cases), -1)
            states = frozen.parts.model.base_model(tokens, use_cache=False).last_hidden_state
        outputs.append(states[:, -1] @ directions.T)
    return torch.cat(outputs)


def _with_latents(frozen: Frozen, number: int, present: Bool[Tensor, "cases active"], waiting: Waiting) -> Replacement:
    step = frozen.steps[number]
    site = step.site

    def replace(x: Tensor) -> Tensor:
        if site is None:
            return step.error.expand_as(x)
        values = torch.relu((x[:, site.position] * site.encoder).sum(-1) + site.encoder_bias) * present
        y = (step.error + site.bias).expand_as(x).clone()
        for target in site.padded_decoders:
            part = values[..., None] * site.decoder(target)
            if target == number:
                y.index_add_(1, site.position, part)
            else:
                waiting.add_(target, torch.zeros_like(x).index_add(1, site.position, part))
        y = waiting.add_to(number, y)
        return y if site.skip is None else y + x @ site.skip.T

    return replace
