"""What single latents are worth, and how alike their directions are."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from transcoders import kernels
from transcoders.activations.reader import LabelledBatch
from transcoders.dictionary.transcoder import Transcoder

NOVEL_COSINE = 0.5
"""A latent repeats an earlier one if its decoder row is closer to that one's than this."""


def removal_effects(model: Transcoder, batches: Iterable[LabelledBatch]) -> Float[Tensor, "d_hidden"]:
    """Return how much each latent's removal alone raises the squared error, as a share of the sum of ||y||^2.

    Removing latent i adds ``z_i d_i`` to the residual r: ``sum_t z_i^2 ||d_i||^2 + 2 z_i d_i . r``.
    Negative where the latent does harm.
    """
    config = model.config
    effects = torch.zeros(config.d_hidden, dtype=torch.float64)
    total = 0.0
    squares = model.W_dec.detach().square().sum(1)
    for batch in batches:
        x, y = batch.x / config.input_scale, batch.y / config.output_scale
        with torch.no_grad():
            latents = model.encode_normalised(x)
            residual = y - model.decode_normalised(latents, x)
        values = latents.values.detach().requires_grad_()
        with torch.enable_grad():
            along = (kernels.decode(latents._replace(values=values), model.W_dec.detach()) * residual).sum()
        (dots,) = torch.autograd.grad(along, values)  # d_i . r of every entry
        indices = latents.indices.long()
        z = latents.values.detach()
        effects.index_add_(0, indices.cpu(), (z.square() * squares[indices] + 2 * z * dots).double().cpu())
        total += float(y.double().square().sum())
    return effects / total


@torch.no_grad()
def largest_cosines(
    rows: Float[Tensor, "rows d"], others: Float[Tensor, "others d"], *, same: bool = False
) -> Float[Tensor, "rows"]:
    """Return each row's largest cosine to one of ``others`` (with ``same``, these are the rows, and itself is none)."""
    rows, others = (torch.nn.functional.normalize(part, dim=1) for part in (rows, others))
    largest = []
    for start in range(0, len(rows), 1024):
        cosines = rows[start : start + 1024] @ others.T
        if same:
            cosines[torch.arange(len(cosines)), start + torch.arange(len(cosines))] = -1.0
        largest.append(cosines.amax(1))
    return torch.cat(largest)
