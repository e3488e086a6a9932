"""Where training starts: the units, and weights that leave no latent dead at birth."""

from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from transcoders import kernels
from transcoders.activations.reader import Batch, LabelledBatch
from transcoders.dictionary.transcoder import Transcoder
from transcoders.kernels import SparseLatents
from transcoders.training.sharing import HERE, Sharing

SAMPLE_TOKENS = 32_768
SMALLEST_SCALE = 1e-3  # of the encoder, should its first directions not help at all


class Statistics(NamedTuple):
    """Hold the means and scales of raw training activations."""

    x_mean: Float[Tensor, "d_in"]
    y_mean: Float[Tensor, "d_out"]
    x_scale: float
    """``x / x_scale`` has mean squared length d_in."""
    y_scale: float


class Beginning(Protocol):
    """Describe what gives latents their first weights."""

    @property
    def seed(self) -> int:
        """Return the seed of the run."""

    def of_phase(self, number: int, earlier: Any) -> "Beginning":
        """Return the beginning of phase ``number``: what ``earlier`` latents leave of y, and a seed of its own."""

    def initialise_(self, model: Any, sharing: Sharing) -> None:
        """Give a part of the dictionary its first weights."""


class Start(NamedTuple):
    """Hold what latents are initialised from: statistics of the activations, and a raw sample of them."""

    statistics: Statistics
    sample: Batch
    seed: int

    def of_phase(self, number: int, earlier: Transcoder | None) -> "Start":
        """Return the start of phase ``number``: what ``earlier`` latents leave of y, and a seed of its own."""
        seed = self.seed + 1000 * (number - 1)
        if earlier is None:
            return self._replace(seed=seed)
        x, y = self.sample
        left = y - torch.cat([earlier(part.to(earlier.W_enc)).cpu() for part in x.split(8192)])
        statistics = self.statistics._replace(y_mean=torch.zeros_like(self.statistics.y_mean))
        return Start(statistics, Batch(x, left), seed)

    def initialise_(self, model: Transcoder, sharing: Sharing) -> None:
        """Give ``model``, a part of the transcoder, its first weights."""
        initialise_(model, self, sharing)


def sample_of(batches: list[LabelledBatch]) -> Batch:
    """Return the first ``SAMPLE_TOKENS`` tokens of ``batches``, on the CPU."""
    x = torch.cat([batch.x for batch in batches])[:SAMPLE_TOKENS]
    return Batch(x.cpu(), torch.cat([batch.y for batch in batches])[:SAMPLE_TOKENS].cpu())


def measure(batches: list[LabelledBatch]) -> Statistics:
    """Measure means and scales over ``batches``, accumulated in float64."""
    tokens = sum(len(batch.x) for batch in batches)
    moments = []
    for values in ([batch.x.cpu() for batch in batches], [batch.y.cpu() for batch in batches]):
        total = sum(part.double().sum(0) for part in values)
        square = sum(float(part.double().square().sum()) for part in values)
        mean = torch.as_tensor(total / tokens)
        moments.append((mean.float(), (square / tokens / len(mean)) ** 0.5))
    (x_mean, x_scale), (y_mean, y_scale) = moments
    return Statistics(x_mean, y_mean, x_scale, y_scale)


def initialise_(model: Transcoder, start: Start, sharing: Sharing = HERE) -> None:
    """Draw random encoder rows, and take decoder rows from what the tokens that fire them have in common.

    ``b_enc = -W_enc mean(x)``: with an offset, the same few latents would win on every token and
    the rest be dead from the start (arXiv 2605.31518). ``b_dec = mean(y)``. Decoder row i points to
    ``sum_t z_ti (y_t - mean(y))`` over the raw sample, and the encoder's scale is the one with
    the smallest error there: a latent with a random direction does harm at first, is pushed down
    by every gradient, and dies (docs/recipe.md has the numbers). Thresholds, and relu's bias, start where
    k latents per token are active.
    """
    statistics, sample, seed = start
    generator = torch.Generator().manual_seed(seed)
    config, d_hidden = model.config, sharing.config(model).d_hidden
    x = sample.x.to(model.W_enc) / config.input_scale
    y = sample.y.to(model.W_enc) / config.output_scale
    with torch.no_grad():
        for weights in (model.W_enc, model.W_dec):
            rows = torch.randn(d_hidden, weights.shape[1], generator=generator)
            weights.copy_(normalize(sharing.rows(model, rows)))
        model.b_dec.copy_(statistics.y_mean / statistics.y_scale)
        x_mean = (statistics.x_mean / statistics.x_scale).to(model.W_enc)
        model.b_enc.copy_(-(model.W_enc @ x_mean))
        latents = model.largest(x)
        centred = y - model.b_dec
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
        if not model.encoder.fixed_k:
            let_k_be_active_(model, latents._replace(values=latents.values * scale), sharing)


def let_k_be_active_(model: Transcoder, latents: SparseLatents, sharing: Sharing) -> None:
    """Set thresholds or biases so that k latents per token are active on average.

    The k-th largest activation of the median token lies between the k largest and the others.
    """
    for group in model.config.groups:
        entries = kernels.between(latents, group.start, group.stop)
        rows = entries.rows()
        chosen = entries.values.new_full((entries.tokens, group.k), torch.inf)  # a slice has fewer than k of some
        chosen[rows, torch.arange(len(rows), device=rows.device) - entries.offsets[rows]] = entries.values
        model.encoder.start_(model, group, sharing.min_(chosen.amin(1)).median())
