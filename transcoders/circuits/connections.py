"""Input-independent connections: what each latent's decoder writes, read by a later layer's encoder.

Dunefsky et al. 2024, arXiv 2406.11944, section 4.1: the effect of a latent on a later one, through the
residual stream alone, is ``encoder · gain · decoder`` times what depends on the input (the source's
value, the norm's scale).
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transcoders.circuits.parts import ModelParts
from transcoders.dictionary.transcoder import Transcoder


class Connections(NamedTuple):
    """Name the latents that most move each of a layer's latents, strongest first."""

    layer: Int[Tensor, "targets count"]
    latent: Int[Tensor, "targets count"]
    weight: Float[Tensor, "targets count"]


def virtual_weights(
    parts: ModelParts, source: Transcoder, target: Transcoder, target_layer: int
) -> Float[Tensor, "targets sources"]:
    """Return each target latent's pre-activation per unit of each source latent, at a normalised state of length √d."""
    gain = parts.layers[target_layer].mlp_norm.gain.to(target.W_enc.dtype)
    weights: Tensor = (target.W_enc * gain) @ source.W_dec.T
    return weights * (source.config.output_scale / target.config.input_scale)


def strongest(parts: ModelParts, transcoders: Mapping[int, Transcoder], target_layer: int, count: int) -> Connections:
    """Return the ``count`` strongest connections into each latent of ``target_layer`` from all earlier layers.

    One pair of layers is in memory at a time.
    """
    target = transcoders[target_layer]
    rows = target.config.d_hidden
    layer = torch.zeros(rows, 0, dtype=torch.long, device=target.W_enc.device)
    latent, weight = layer.clone(), target.W_enc.new_zeros(rows, 0)
    for number in sorted(n for n in transcoders if n < target_layer):
        weights = virtual_weights(parts, transcoders[number], target, target_layer)
        best = weights.abs().topk(min(count, weights.shape[1]), dim=1).indices
        layer = torch.cat([layer, torch.full_like(best, number)], 1)
        latent, weight = torch.cat([latent, best], 1), torch.cat([weight, weights.gather(1, best)], 1)
        order = weight.abs().argsort(dim=1, descending=True, stable=True)[:, :count]
        layer, latent, weight = layer.gather(1, order), latent.gather(1, order), weight.gather(1, order)
    return Connections(layer, latent, weight)
