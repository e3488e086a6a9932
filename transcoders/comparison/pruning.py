"""Plain dictionaries cut to the size of a nested one's prefix: what the prefix must beat."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from transcoders.activations.reader import LabelledBatch
from transcoders.dictionary.config import PER_LATENT
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.latents import removal_effects
from transcoders.training.settings import VariantSettings

IMPORTANCE_BATCHES = 4
"""Batches of training tokens on which a latent's importance is measured."""


def prune_to_prefixes(
    model: Transcoder, nested: list[VariantSettings], train: list[LabelledBatch]
) -> Mapping[int, Transcoder]:
    """Return a plain transcoder cut to each prefix (size and k) of the ``nested`` variants, by its size."""
    config = model.config
    prefixes = {pair for v in nested for pair in zip(v.sizes(config.d_hidden), v.ks(config.k), strict=True)}
    wanted = sorted((m, k) for m, k in prefixes if m < config.d_hidden)
    if not wanted:
        return {}
    importance = removal_effects(model, train[:IMPORTANCE_BATCHES])
    return {m: pruned(model, importance, m, k) for m, k in wanted}


@torch.no_grad()
def pruned(model: Transcoder, importance: Float[Tensor, "d_hidden"], m: int, k: int) -> Transcoder:
    """Return the ``m`` most important latents of a plain transcoder, of which each token takes its top ``k``."""
    chosen = importance.topk(m).indices.sort().values.to(model.W_enc.device)
    small = Transcoder(model.config.model_copy(update={"d_hidden": m, "k": k})).to(model.W_enc.device)
    for name, value in small.named_parameters():
        weights = getattr(model, name)
        value.copy_(weights[chosen] if name in PER_LATENT else weights)
    return small.requires_grad_(False)
