"""Where the training of a cross-layer transcoder starts: units of each layer, and decoders to all later ones."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from transcoders import kernels
from transcoders.activations.layers import LayersBatch
from transcoders.activations.reader import Batch
from transcoders.dictionary.crosslayer.transcoder import CrossLayerTranscoder
from transcoders.dictionary.transcoder import Transcoder
from transcoders.training.sharing import Sharing
from transcoders.training.start import SMALLEST_SCALE, Statistics, let_k_be_active_

SAMPLE_TOKENS = 8192
CHUNK = 1024
"""Tokens of the sample whose outputs of all layers are made at a time."""


class CrossLayerStart(NamedTuple):
    """Hold what latents are initialised from: statistics of each layer, and a raw sample of all layers side by side."""

    statistics: Sequence[Statistics]
    sample: Batch
    seed: int

    def of_phase(self, number: int, earlier: CrossLayerTranscoder | None) -> "CrossLayerStart":
        """Return the start of phase ``number``: what ``earlier`` latents leave of y, and a seed of its own."""
        seed = self.seed + 1000 * (number - 1)
        if earlier is None:
            return self._replace(seed=seed)
        d = earlier.config.d_model
        left = [
            y - earlier(x.view(len(x), -1, d).to(earlier.b_dec)).flatten(1).cpu()
            for x, y in zip(*(part.split(CHUNK) for part in self.sample), strict=True)
        ]
        nothing = [part._replace(y_mean=torch.zeros_like(part.y_mean)) for part in self.statistics]
        return CrossLayerStart(nothing, Batch(self.sample.x, torch.cat(left)), seed)

    @torch.no_grad()
    def initialise_(self, model: CrossLayerTranscoder, sharing: Sharing) -> None:
        """Give each layer random encoder rows, and decoder rows from what the layers before leave of all its targets.

        Layer after layer: row i points to ``sum_t z_ti r_t``, the rest r being that of the layer's own and all later
        outputs. The part of each target is weighted by how much it helps there (its least-squares factor in the
        sample, no less than 0), so that outputs that a layer does not foretell get small rows. As with a transcoder of
        one layer, the encoder's scale is the one with the smallest error (``training.start``).
        """
        generator = torch.Generator().manual_seed(self.seed)
        x, left = model.normalised(*(part.to(model.b_dec) for part in self.sample))
        means = [part.y_mean / part.y_scale for part in self.statistics]
        model.b_dec.copy_(torch.cat(means))
        left = left - model.b_dec
        for source, x_of, first, statistics in zip(
            model.sources, model.inputs(x), model.firsts, self.statistics, strict=True
        ):
            rows = torch.randn(sharing.config(source).d_hidden, source.config.d_in, generator=generator)
            source.W_enc.copy_(normalize(sharing.rows(source, rows)))
            source.b_enc.copy_(-(source.W_enc @ (statistics.x_mean / statistics.x_scale).to(source.W_enc)))
            left[:, first : first + source.config.d_out] -= _initialise_source_(
                source, x_of, left[:, first : first + source.config.d_out], sharing
            )


def start_of_layers(statistics: Sequence[Statistics], batches: Sequence[LayersBatch], seed: int) -> CrossLayerStart:
    """Return the start of training from each layer's statistics and the first tokens of the training documents."""
    x, y = (torch.cat(parts)[:SAMPLE_TOKENS].cpu() for parts in zip(*((b.x, b.y) for b in batches), strict=True))
    return CrossLayerStart(statistics, Batch(x, y), seed)


def _initialise_source_(
    source: Transcoder, x: Float[Tensor, "tokens d_in"], left: Float[Tensor, "tokens d_out"], sharing: Sharing
) -> Float[Tensor, "tokens d_out"]:
    """Take decoder rows from what is left of the targets, scale the encoder, and return what both then make."""
    latents = source.largest(x)
    W_dec = _toward(latents, left, source)
    fired = W_dec.norm(dim=1) > 0
    made = sharing.summed(kernels.decode(latents, W_dec))
    d = source.config.d_in
    by_target = [part.unflatten(1, (-1, d)) for part in (made, left)]
    helps = (by_target[0] * by_target[1]).sum((0, 2)) / by_target[0].square().sum((0, 2)).clamp(min=1e-30)
    W_dec *= helps.clamp(min=0).repeat_interleave(d)
    source.W_dec[fired] = normalize(W_dec[fired])
    without = torch.zeros_like(source.W_dec[~fired])
    without[:, :d] = 1 / d**0.5
    source.W_dec[~fired] = without
    made = sharing.summed(kernels.decode(latents, source.W_dec))
    scale = ((made * left).sum() / made.square().sum()).clamp(min=SMALLEST_SCALE)
    source.W_enc.mul_(scale)
    source.b_enc.mul_(scale)
    if not source.encoder.fixed_k:
        let_k_be_active_(source, latents._replace(values=latents.values * scale), sharing)
    return made * scale


def _toward(
    latents: kernels.SparseLatents, left: Float[Tensor, "tokens d_out"], source: Transcoder
) -> Float[Tensor, "d_hidden d_out"]:
    """Return ``z^T left``: the gradient of <z W, left> in W, which the sparse kernel computes."""
    rows = torch.zeros_like(source.W_dec).requires_grad_()
    with torch.enable_grad():
        (toward,) = torch.autograd.grad((kernels.decode(latents, rows) * left).sum(), rows)
    return toward
