"""The clean run of a layer, which every replaced run starts from and is compared with."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from transcoders.core.errors import DAMAGE, UserError
from transcoders.core.tensors import save_tensors
from transcoders.evaluation.likelihood import Reference, compare, reference
from transcoders.evaluation.loss import ContextBatch, ModelLosses, batches_of, no_losses
from transcoders.evaluation.predictors import constant
from transcoders.evaluation.reconstruction import Predictor
from transcoders.language.head import Head
from transcoders.language.passes import Passes


class CleanBatch(NamedTuple):
    """Hold what the untouched model makes of some contexts."""

    contexts: ContextBatch
    entering: Float[Tensor, "contexts length d_model"]
    """The residual stream that enters the layer's block (0 on padding)."""
    predictions: Reference
    """Of every position but the last, contexts one after the other, without padding."""


class CleanRun(NamedTuple):
    """Hold the clean run of a layer on test contexts, and the losses that every evaluation of the layer needs."""

    batches: list[CleanBatch]
    losses: ModelLosses
    """Of the model clean and with the layer's MLP replaced by ``zero`` and by ``mean``."""


def clean_run(
    passes: Passes,
    head: Head,
    contexts: list[ContextBatch],
    y_mean: Float[Tensor, "d_out"],
    documents: int,
    *,
    bf16: bool = False,
) -> CleanRun:
    """Run the model on ``contexts``: untouched, and with its MLP's output replaced by 0 and by ``y_mean``."""
    batches = []
    for batch in tqdm(contexts, desc="clean run", unit="batch"):
        mask = batch.mask.to(passes.device)
        clean = passes.clean(batch.tokens.to(passes.device))
        predictions = reference(head, clean.final[:, :-1][mask[:, 1:]], batch.target.to(passes.device), bf16=bf16)
        batches.append(CleanBatch(batch, clean.entering * mask[..., None], predictions))
    constants = {"zero": constant(torch.zeros_like(y_mean)), "mean": constant(y_mean)}
    return CleanRun(batches, replaced_losses(passes, head, batches, constants, documents, bf16=bf16))


@torch.inference_mode()
def replaced_losses(
    passes: Passes,
    head: Head,
    batches: list[CleanBatch],
    replacements: Mapping[str, Predictor],
    documents: int,
    *,
    bf16: bool = False,
) -> ModelLosses:
    """Run the model with each of ``replacements`` in the place of its MLP, at every token but BOS."""
    losses = no_losses(list(replacements), documents)
    with tqdm(desc="model loss", total=sum(batch.contexts.size for batch in batches), unit="tok") as bar:
        for contexts, entering, predictions in batches:
            tokens, predicted = contexts.tokens.to(passes.device), contexts.mask[:, 1:].to(passes.device)
            entering, clean = entering.to(passes.device), predictions.to(passes.device)
            x, y = passes.mlp(tokens, entering)
            losses.add_clean_(clean.ce, contexts)
            for name, predict in replacements.items():
                flat = predict(x[:, 1:].flatten(0, 1), y[:, 1:].flatten(0, 1)).y_hat
                spliced = torch.cat([y[:, :1], flat.reshape(y[:, 1:].shape)], dim=1)
                states = passes.replaced(tokens, entering, spliced)[:, :-1][predicted]
                losses.add_(name, compare(head, clean, states, bf16=bf16), contexts)
            bar.update(contexts.size)
    return losses


def save_clean(path: Path, run: CleanRun) -> None:
    """Write a clean run to one safetensors file; padding is left out."""
    contexts = [batch.contexts for batch in run.batches]
    losses = run.losses
    tensors = {
        "token": torch.cat([batch.tokens[batch.mask] for batch in contexts]),
        "length": torch.cat([batch.mask.sum(1) for batch in contexts]),
        "document": torch.cat([batch.document for batch in contexts]),
        "entering": torch.cat([batch.entering[batch.contexts.mask] for batch in run.batches]),
        "tokens": losses.tokens,
        "ce_clean": losses.ce_clean,
        "ce_zero": losses.ce["zero"],
        "ce_mean": losses.ce["mean"],
    }
    predictions = Reference(*map(torch.cat, zip(*(batch.predictions for batch in run.batches), strict=True)))
    save_tensors(path, tensors | predictions._asdict())


def load_clean(path: Path) -> CleanRun:
    """Read what ``save_clean`` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        value = load_file(path)
        rows = [row.numpy() for row in value["token"].split(value["length"].tolist())]
        contexts = batches_of(rows, value["document"].numpy())
        predictions = Reference(**{name: value[name] for name in Reference._fields})
        entering = value["entering"].split([int(batch.mask.sum()) for batch in contexts])
        ends = itertools.accumulate(batch.size for batch in contexts)
        batches = [
            CleanBatch(batch, _padded(stream, batch), predictions.rows(slice(end - batch.size, end)))
            for batch, stream, end in zip(contexts, entering, ends, strict=True)
        ]
        ce = {name: value[f"ce_{name}"] for name in ("zero", "mean")}
        return CleanRun(batches, ModelLosses(value["ce_clean"], ce, {}, {}, value["tokens"]))
    except (*DAMAGE, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not readable ({reason}); remove it and run `dvc repro clean`") from None


def _padded(rows: Tensor, batch: ContextBatch) -> Tensor:
    padded = rows.new_zeros(*batch.mask.shape, rows.shape[1])
    padded[batch.mask] = rows
    return padded
