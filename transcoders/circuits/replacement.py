"""The model with all its MLPs replaced at once: how well it still predicts, and what single latents do in it."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from transcoders.circuits.frozen import Frozen, Step
from transcoders.circuits.layout import Layout, Replacement, replaced
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.loss import ROWS_PER_CHUNK, ContextBatch, ModelLosses, add_rows, no_losses

CASES_PER_BATCH = 16


@torch.inference_mode()
def replaced_losses(
    layout: Layout, transcoders: Mapping[int, Transcoder], means: Mapping[int, Float[Tensor, "d_model"]],
    batches: list[ContextBatch], documents: int,
) -> ModelLosses:  # fmt: skip
    """Loss of the model with every MLP that has a transcoder replaced.

    ``replaced``: by the transcoders alone. ``with_errors``: plus what each misses on the clean run, which
    must give the clean loss. ``zero``, ``mean``: by constants.
    """
    losses = no_losses(["replaced", "with_errors", "zero", "mean"], documents)
    body = layout.model.base_model
    with tqdm(desc="all MLPs replaced", total=sum(int(b.mask[:, 1:].sum()) for b in batches), unit="tok") as bar:
        for batch in batches:
            tokens, predicted = batch.tokens.to(layout.device), batch.mask[:, 1:].to(layout.device)

            def final(ways: Mapping[int, Replacement], tokens: Tensor = tokens, kept: Tensor = predicted) -> Tensor:
                with replaced(layout, ways):
                    return body(tokens, use_cache=False).last_hidden_state[:, :-1][kept]

            clean, errors = _clean_run(layout, transcoders, tokens)
            states = {
                "replaced": final(transcoders),
                "with_errors": final({n: _plus(model, errors[n]) for n, model in transcoders.items()}),
                "zero": final(dict.fromkeys(transcoders, torch.zeros_like)),
                "mean": final({n: _constant(means[n]) for n in transcoders}),
            }
            clean, target = clean[:, :-1][predicted], tokens[:, 1:][predicted]
            owner = batch.document[:, None].expand_as(batch.mask[:, 1:])[batch.mask[:, 1:]]
            for start in range(0, len(target), ROWS_PER_CHUNK):
                rows = slice(start, start + ROWS_PER_CHUNK)
                chunk = {name: values[rows] for name, values in states.items()}
                add_rows(losses, layout.model, clean[rows], chunk, target[rows, None], owner[rows])
            bar.update(len(target))
    return losses


def _clean_run(
    layout: Layout, transcoders: Mapping[int, Transcoder], tokens: Tensor
) -> tuple[Tensor, dict[int, Tensor]]:
    """Final states of the untouched model, and what each transcoder misses of its MLP's output there."""
    predictions: dict[int, Tensor] = {}
    errors: dict[int, Tensor] = {}

    def predict(number: int) -> Any:
        def hook(module: Any, arguments: Any, x: Tensor) -> None:
            predictions[number] = transcoders[number](x)

        return hook

    def subtract(number: int) -> Any:
        def hook(module: Any, arguments: Any, y: Tensor) -> None:
            errors[number] = y - predictions.pop(number)

        return hook

    with ExitStack() as stack:
        for number in transcoders:
            layer = layout.layers[number]
            stack.callback(layer.mlp_in.register_forward_hook(predict(number)).remove)
            stack.callback(layer.mlp_out.register_forward_hook(subtract(number)).remove)
        return layout.model.base_model(tokens, use_cache=False).last_hidden_state, errors


def _plus(model: Transcoder, error: Tensor) -> Replacement:
    return lambda x: model(x) + error


def _constant(value: Tensor) -> Replacement:
    return lambda x: value.to(x).expand_as(x)


@torch.inference_mode()
def run_with_latents(
    frozen: Frozen, directions: Float[Tensor, "outputs d_model"], kept: Bool[Tensor, "cases active"]
) -> Float[Tensor, "cases outputs"]:
    """Outputs of the live model, attention and norms included, when only ``kept`` of the active latents are there.

    A kept latent's value is computed from what reaches it (no other ones fire); errors stay as they are.
    """
    counts = [0 if step.site is None else len(step.site.latent) for step in frozen.steps]
    found = []
    for cases in kept.split(CASES_PER_BATCH):
        parts = cases.split(counts, dim=1)
        ways = {n: _with_kept(step, part) for n, (step, part) in enumerate(zip(frozen.steps, parts, strict=True))}
        with replaced(frozen.layout, ways):
            tokens = frozen.tokens.expand(len(cases), -1)
            states = frozen.layout.model.base_model(tokens, use_cache=False).last_hidden_state
        found.append(states[:, -1] @ directions.T)
    return torch.cat(found)


def _with_kept(step: Step, kept: Bool[Tensor, "cases active"]) -> Replacement:
    site = step.site

    def replace(x: Tensor) -> Tensor:
        if site is None:
            return step.error.expand_as(x)
        values = torch.relu((x[:, site.position] * site.encoder).sum(-1) + site.encoder_bias) * kept
        y = (step.error + site.bias).expand_as(x).clone()
        y.index_add_(1, site.position, values[..., None] * site.decoder)
        return y if site.skip is None else y + x @ site.skip.T

    return replace
