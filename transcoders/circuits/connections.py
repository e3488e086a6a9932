"""Input-independent connections: what each latent's decoder writes, read by a later layer's encoder.

Dunefsky et al. 2024, arXiv 2406.11944, section 4.1: the effect of a latent on a later one, through the
residual stream alone, is ``encoder · gain · decoder`` times what depends on the input (the source's
value, the norm's scale).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transcoders.circuits.parts import ModelParts
from transcoders.circuits.writers import Transcoders, Writer, writers_of


class Connections(NamedTuple):
    """Name the latents that most move each of a layer's latents, strongest first."""

    layer: Int[Tensor, "targets count"]
    latent: Int[Tensor, "targets count"]
    weight: Float[Tensor, "targets count"]


def virtual_weights(
    parts: ModelParts, source: Writer, target: Writer, target_layer: int
) -> Float[Tensor, "targets sources"]:
    """Return each target latent's pre-activation per unit of each source latent, at a normalised state of length √d.

    A source latent's decoders for all layers before the target's add up.
    """
    encoder = target.latents.W_enc
    gain = parts.layers[target_layer].mlp_norm.gain.to(encoder.dtype)
    decoders = zip(source.decoders().items(), source.output_scales, strict=True)
    written = [rows * (scale / source.output_scale) for (layer, rows), scale in decoders if layer < target_layer]
    weights: Tensor = (encoder * gain) @ torch.stack(written).sum(0).T
    return weights * (source.output_scale / target.input_scale)


def strongest(parts: ModelParts, transcoders: Transcoders, target_layer: int, count: int) -> Connections:
    """Return the ``count`` strongest connections into each latent of ``target_layer`` from all earlier layers.

    One pair of layers is in memory at a time.
    """
    writers = writers_of(transcoders)
    target = writers[target_layer]
    encoder = target.latents.W_enc
    layer = torch.zeros(len(encoder), 0, dtype=torch.long, device=encoder.device)
    latent, weight = layer.clone(), encoder.new_zeros(len(encoder), 0)
    for number in [number for number in writers if number < target_layer]:
        weights = virtual_weights(parts, writers[number], target, target_layer)
        best = weights.abs().topk(min(count, weights.shape[1]), dim=1).indices
        layer = torch.cat([layer, torch.full_like(best, number)], 1)
        latent, weight = torch.cat([latent, best], 1), torch.cat([weight, weights.gather(1, best)], 1)
        order = weight.abs().argsort(dim=1, descending=True, stable=True)[:, :count]
        layer, latent, weight = layer.gather(1, order), latent.gather(1, order), weight.gather(1, order)
    return Connections(layer, latent, weight)
