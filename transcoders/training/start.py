"""Where training starts: the units, and weights that leave no latent dead at birth."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from transcoders import kernels
from transcoders.activations.reader import Batch, LabelledBatch
from transcoders.dictionary.transcoder import FIXED_K, Transcoder
from transcoders.kernels import SparseLatents

SAMPLE_TOKENS = 32_768
SMALLEST_SCALE = 1e-3  # of the encoder, should its first directions not help at all


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


def initialise_(
    model: Transcoder,
    statistics: Statistics,
    sample: Batch,
    seed: int,
    decoder: Literal["residual", "random"] = "residual",
) -> None:
    """Random encoder rows; decoder rows from what the tokens that fire them have in common.

    ``b_enc = -W_enc mean(x)``: with an offset, the same few latents would win on every token and
    the rest be dead from the start (arXiv 2605.31518). ``b_dec = mean(y)``. Decoder row i points to
    ``sum_t z_ti (y_t - mean(y))`` over the raw ``sample``, and the encoder's scale is the one with
    the smallest error there: a latent with a random direction does harm at first, is pushed down
    by every gradient, and dies (docs/recipe.md has the numbers). With ``decoder: random`` its rows
    stay random. Thresholds, and relu's bias, start where k latents per token are active.
    """
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    x = sample.x.to(model.W_enc) / config.input_scale
    y = sample.y.to(model.W_enc) / config.output_scale
    with torch.no_grad():
        for weights in (model.W_enc, model.W_dec):
            rows = torch.randn(model.whole.d_hidden, weights.shape[1], generator=generator)
            weights.copy_(normalize(model.own(rows)))
        model.b_dec.copy_(statistics.y_mean / statistics.y_scale)
        x_mean = (statistics.x_mean / statistics.x_scale).to(model.W_enc)
        model.b_enc.copy_(-(model.W_enc @ x_mean))
        latents = model.largest(x)
        centred = y - model.b_dec
    if decoder == "residual":
        rows = model.W_dec.detach().requires_grad_()
        with torch.enable_grad():  # The gradient of <z W_dec, y> in W_dec is z^T y: the sparse kernel computes it.
            (toward,) = torch.autograd.grad((kernels.decode(latents, rows) * centred).sum(), rows)
        fired = toward.norm(dim=1) > 0
        model.W_dec.data[fired] = normalize(toward[fired])
    with torch.no_grad():
        y_hat = model.decode_latents(latents)
        scale = ((y_hat * centred).sum() / y_hat.square().sum()).clamp(min=SMALLEST_SCALE)
        model.W_enc.mul_(scale)
        model.b_enc.mul_(scale)
        if config.encoder not in FIXED_K:
            _set_thresholds(model, latents._replace(values=latents.values * scale))


def _set_thresholds(model: Transcoder, latents: SparseLatents) -> None:
    """Let k latents per token be active on average: the k-th largest is a value between the k largest."""
    for group in model.config.groups:
        own = kernels.between(latents, group.start, group.stop)
        rows = own.rows()
        chosen = own.values.new_full((own.tokens, group.k), torch.inf)  # a slice has fewer than k of some tokens
        chosen[rows, torch.arange(len(rows), device=rows.device) - own.offsets[rows]] = own.values
        least = model.team.min_(chosen.amin(1)).median()
        if model.config.encoder == "relu":
            model.b_enc[group.start : group.stop] -= least
        else:
            model.threshold[group.start : group.stop] = least
