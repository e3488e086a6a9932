"""Where training starts: the units, and weights that leave no latent dead at birth."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from transcoders import kernels
from transcoders.activations.reader import Batch, LabelledBatch
from transcoders.dictionary.transcoder import Transcoder

SAMPLE_TOKENS = 32_768


class Statistics(NamedTuple):
    """Of raw training activations."""

    x_mean: Float[Tensor, "d_in"]
    y_mean: Float[Tensor, "d_out"]
    x_scale: float
    """``x / x_scale`` has mean squared length d_in."""
    y_scale: float


def sample_of(batches: list[LabelledBatch]) -> Batch:
    """The first ``SAMPLE_TOKENS`` tokens of ``batches``, on the CPU."""
    x = torch.cat([batch.x for batch in batches])[:SAMPLE_TOKENS]
    return Batch(x.cpu(), torch.cat([batch.y for batch in batches])[:SAMPLE_TOKENS].cpu())


def measure(batches: list[LabelledBatch]) -> Statistics:
    """Means and scales over ``batches``, accumulated in float64."""
    tokens = sum(len(batch.x) for batch in batches)
    moments = []
    for values in ([batch.x.cpu() for batch in batches], [batch.y.cpu() for batch in batches]):
        total = sum(part.double().sum(0) for part in values)
        square = sum(float(part.double().square().sum()) for part in values)
        mean = torch.as_tensor(total / tokens)
        moments.append((mean.float(), (square / tokens / len(mean)) ** 0.5))
    (x_mean, x_scale), (y_mean, y_scale) = moments
    return Statistics(x_mean, y_mean, x_scale, y_scale)


def initialise_(model: Transcoder, statistics: Statistics, sample: Batch, seed: int) -> None:
    """Random encoder rows; decoder rows from what the tokens that fire them have in common.

    ``b_enc = -W_enc mean(x)``: with an offset, the same few latents would win on every token and
    the rest be dead from the start (arXiv 2605.31518). ``b_dec = mean(y)``. Decoder row i points to
    ``sum_t z_ti (y_t - mean(y))`` over the raw ``sample``, and the encoder's scale is the one with
    the smallest error there: a latent with a random direction does harm at first, is pushed down
    by every gradient, and dies (docs/recipe.md has the numbers).
    """
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    x = sample.x.to(model.W_enc) / config.input_scale
    y = sample.y.to(model.W_enc) / config.output_scale
    with torch.no_grad():
        encoder = torch.randn(config.d_hidden, config.d_in, generator=generator)
        decoder = torch.randn(config.d_hidden, config.d_out, generator=generator)
        model.W_enc.copy_(torch.nn.functional.normalize(encoder))
        model.W_dec.copy_(torch.nn.functional.normalize(decoder))
        model.b_dec.copy_(statistics.y_mean / statistics.y_scale)
        x_mean = (statistics.x_mean / statistics.x_scale).to(model.W_enc)
        model.b_enc.copy_(-(model.W_enc @ x_mean))
        latents = model.encode_normalised(x)
        centred = y - model.b_dec
    # The gradient of <z W_dec, y> in W_dec is z^T y: the sparse kernel computes it.
    (toward,) = torch.autograd.grad((kernels.decode(latents, model.W_dec) * centred).sum(), model.W_dec)
    with torch.no_grad():
        fired = toward.norm(dim=1) > 0
        model.W_dec[fired] = torch.nn.functional.normalize(toward[fired])
        y_hat = kernels.decode(latents, model.W_dec)
        scale = (y_hat * centred).sum() / y_hat.square().sum()
        model.W_enc.mul_(scale)
        model.b_enc.mul_(scale)
