"""What is read of a document: the mean over its tokens of each latent, or of each dimension of y."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from transcoders.activations.reader import LabelledBatch
from transcoders.dictionary.transcoder import Transcoder


def lengths(batches: Iterable[LabelledBatch], documents: int) -> NDArray[np.int64]:
    """Return how many tokens of each document are in ``batches``."""
    return sum((np.bincount(b.document, minlength=documents) for b in batches), np.zeros(documents, np.int64))


@torch.no_grad()
def mean_latents(
    model: Transcoder, batches: Iterable[LabelledBatch], tokens: NDArray[np.int64]
) -> Float[Tensor, "documents d_hidden"]:
    """Return the mean activation of each latent over the ``tokens`` of each document; 0 for documents without any."""
    total = torch.zeros(len(tokens), model.config.d_hidden)
    for batch in batches:
        latents = model.encode(batch.x)
        owner = torch.from_numpy(batch.document).long()[latents.rows().cpu()]
        place = owner * model.config.d_hidden + latents.indices.cpu()
        total.view(-1).index_add_(0, place, latents.values.float().cpu())
    return total / _divisor(tokens)


def mean_outputs(
    batches: Iterable[LabelledBatch], tokens: NDArray[np.int64], d_out: int
) -> Float[Tensor, "documents d"]:
    """Return the mean of y over the ``tokens`` of each document; 0 for documents without any."""
    total = torch.zeros(len(tokens), d_out)
    for batch in batches:
        total.index_add_(0, torch.from_numpy(batch.document).long(), batch.y.float().cpu())
    return total / _divisor(tokens)


def _divisor(tokens: NDArray[np.int64]) -> Float[Tensor, "documents 1"]:
    return torch.from_numpy(tokens).clamp(min=1)[:, None].float()
