"""Whether the model still works with one MLP replaced: cross-entropy, KL and agreement."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from transcoders.evaluation.bootstrap import interval
from transcoders.evaluation.reconstruction import Predictor
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.language.taps import Tap

CONTEXTS_PER_BATCH = 8
ROWS_PER_CHUNK = 64  # logits of 64 tokens are 67 MB in Gemma's vocabulary; more only costs memory


class ContextBatch(NamedTuple):
    """Hold contexts to run: BOS first, right-padded with 0; ``mask`` is False on padding."""

    tokens: Int[Tensor, "contexts length"]
    mask: Tensor
    document: Int[Tensor, "contexts"]


class ModelLosses(NamedTuple):
    """Hold sums of each figure over the predicted tokens of each document, and the number of those tokens."""

    ce_clean: Float[Tensor, "documents"]
    ce: dict[str, Float[Tensor, "documents"]]
    kl: dict[str, Float[Tensor, "documents"]]
    agreement: dict[str, Float[Tensor, "documents"]]
    tokens: Float[Tensor, "documents"]


def context_batches(rows: list[NDArray[np.int64]], document: NDArray[np.int64], limit: int) -> list[ContextBatch]:
    """Return batches of the first contexts that hold ``limit`` tokens together (BOS not counted)."""
    count, left = 0, limit
    while count < len(rows) and left > 0:
        left -= len(rows[count]) - 1
        count += 1
    result = []
    for start in range(0, count, CONTEXTS_PER_BATCH):
        part = [torch.as_tensor(np.array(row)).long() for row in rows[start : min(start + CONTEXTS_PER_BATCH, count)]]
        padded = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
        lengths = torch.tensor([len(row) for row in part])
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        owner = torch.as_tensor(np.array(document[start : start + len(part)])).long()
        result.append(ContextBatch(padded, mask, owner))
    return result


def no_losses(names: list[str], documents: int) -> ModelLosses:
    """Return empty sums to add to, of the clean model and of replacements ``names``."""
    empty = torch.zeros(documents, dtype=torch.float64)
    ce, kl, agreement = ({name: empty.clone() for name in names} for _ in range(3))
    return ModelLosses(empty.clone(), ce, kl, agreement, empty.clone())


@torch.inference_mode()
def model_losses(
    bridge: Any, tap: Tap, batches: list[ContextBatch], replacements: Mapping[str, Predictor], documents: int
) -> ModelLosses:
    """Run the model clean and with each replacement spliced in at the tap (at every token but BOS)."""
    device = next(bridge.original_model.parameters()).device
    losses = no_losses(list(replacements), documents)
    total = sum(int(batch.mask[:, 1:].sum()) for batch in batches)
    with tqdm(desc="model loss", total=total, unit="tok") as bar:
        for batch in batches:
            _add_batch(losses, bridge, tap, batch, replacements, device)
            bar.update(int(batch.mask[:, 1:].sum()))
    return losses


def _add_batch(
    losses: ModelLosses,
    bridge: Any,
    tap: Tap,
    batch: ContextBatch,
    replacements: Mapping[str, Predictor],
    device: torch.device,
) -> None:
    """Add one batch of contexts to ``losses``: a clean pass, then one with each replacement."""
    tokens = batch.tokens.to(device)
    predicted = batch.mask[:, 1:].to(device)
    target = tokens[:, 1:][predicted]
    owner = batch.document[:, None].expand_as(batch.mask[:, 1:])[batch.mask[:, 1:]]
    caught: dict[str, Tensor] = {}

    def final_states(hooks: list[Any]) -> Tensor:
        with bridge.hooks(fwd_hooks=hooks):
            states = bridge.original_model.base_model(tokens, use_cache=False).last_hidden_state
        return states[:, :-1][predicted]

    def catch(value: Tensor, hook: Any) -> None:
        caught[hook.name] = value

    names = [bridge.hook_dict[name].name for name in (tap.hook_in, tap.hook_out)]
    clean = final_states([(name, catch) for name in names])
    x, y = (caught[name][:, 1:] for name in names)
    states = {}
    for name, predict in replacements.items():
        flat = predict(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])).y_hat
        spliced = torch.cat([caught[names[1]][:, :1], flat.reshape(y.shape)], dim=1)
        states[name] = final_states([(names[1], lambda value, hook, new=spliced: new)])
    for start in range(0, len(target), ROWS_PER_CHUNK):
        rows = slice(start, start + ROWS_PER_CHUNK)
        chunk = {name: values[rows] for name, values in states.items()}
        add_rows(losses, bridge.original_model, clean[rows], chunk, target[rows, None], owner[rows])


def add_rows(
    losses: ModelLosses, model: Any, clean_states: Tensor, states: dict[str, Tensor], target: Tensor, owner: Tensor
) -> None:
    """Add what the model predicts from final states [tokens, d_model]: the clean ones and each replacement's."""

    def log_probabilities(values: Tensor) -> Tensor:
        logits = model.get_output_embeddings()(values).float()
        cap = getattr(model.config, "final_logit_softcapping", None)
        return torch.log_softmax(cap * torch.tanh(logits / cap) if cap else logits, dim=-1)

    def add(into: Tensor, values: Tensor) -> None:
        into.index_add_(0, owner, values.double().cpu())

    clean = log_probabilities(clean_states)
    add(losses.ce_clean, -clean.gather(1, target)[:, 0])
    add(losses.tokens, torch.ones(len(owner)))
    probabilities, choice = clean.exp(), clean.argmax(1)
    for name, values in states.items():
        replaced = log_probabilities(values)
        add(losses.ce[name], -replaced.gather(1, target)[:, 0])
        add(losses.agreement[name], (replaced.argmax(1) == choice).float())
        add(losses.kl[name], torch.linalg.vecdot(probabilities, clean - replaced))


def loss_metrics(losses: ModelLosses, name: str, settings: EvaluateSettings) -> dict[str, float]:
    """Return ce_*, delta_ce, loss_recovered (with intervals), kl and top1_agreement of one replacement.

    ``losses`` must hold the replacements ``zero`` and ``mean`` too.
    """
    tokens = losses.tokens
    clean, zero, replaced = losses.ce_clean, losses.ce["zero"], losses.ce[name]
    total = float(tokens.sum())
    present = tokens > 0
    delta = interval(lambda w: np.asarray((w @ (replaced - clean)) / (w @ tokens)), present, settings)
    recovered = interval(lambda w: np.asarray((w @ (zero - replaced)) / (w @ (zero - clean))), present, settings)
    return {
        "loss_tokens": total,
        "ce_clean": float(clean.sum()) / total,
        "ce_replaced": float(replaced.sum()) / total,
        "ce_zero": float(zero.sum()) / total,
        "ce_mean": float(losses.ce["mean"].sum()) / total,
        "delta_ce": delta[0],
        "delta_ce_low": delta[1],
        "delta_ce_high": delta[2],
        "loss_recovered": recovered[0],
        "loss_recovered_low": recovered[1],
        "loss_recovered_high": recovered[2],
        "kl": float(losses.kl[name].sum()) / total,
        "top1_agreement": float(losses.agreement[name].sum()) / total,
    }
