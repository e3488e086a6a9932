"""A model on one prompt, linearised: attention patterns and the norms' denominators are constants.

What is left between the MLPs is linear in the residual stream. Every MLP's output is written as active
latents times decoder rows, a skip path that is linear too, the decoder's bias, and an error that makes up
for what the transcoder misses. Latents of a cross-layer transcoder are in the outputs of several MLPs.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transcoders.circuits.parts import Layer, ModelParts
from transcoders.circuits.writers import Transcoders, Waiting, Writer, writers_of
from transcoders.core.errors import UserError

REPLAY_TOLERANCE = 1e-3


class Site(NamedTuple):
    """Hold the active latents of one layer in raw units, by position and then by id; [tokens, most] pads them."""

    position: Int[Tensor, "active"]
    latent: Int[Tensor, "active"]
    value: Float[Tensor, "active"]
    encoder: Float[Tensor, "active d_model"]
    """How x at its position enters a latent's pre-activation."""
    encoder_bias: Float[Tensor, "active"]
    occupied: Bool[Tensor, "tokens most"]
    """The places of the padded rows that are latents, row by row in the order above."""
    padded_decoders: dict[int, Float[Tensor, "tokens most d_model"]]
    """By layer whose y the latents write to."""
    bias: Float[Tensor, "tokens d_model"]
    """The decoder's bias; 0 at BOS, which has no latents."""
    skip: Float[Tensor, "d_model d_model"] | None
    """``y += x skip^T`` at every position but BOS."""

    def decoder(self, target: int) -> Float[Tensor, "active d_model"]:
        """Return what each latent writes to the y of layer ``target``, per unit of its value."""
        return self.padded_decoders[target][self.occupied]


class Step(NamedTuple):
    """Hold one layer of the linear model: multipliers [tokens, d_model] that stand for the norms, and the rest of y."""

    attention_in: Float[Tensor, "tokens d_model"]
    pattern: Float[Tensor, "heads to from"]
    attention_out: Float[Tensor, "tokens d_model"] | None
    mlp_in: Float[Tensor, "tokens d_model"]
    y: Float[Tensor, "tokens d_model"]
    error: Float[Tensor, "tokens d_model"]
    site: Site | None
    """None where no transcoder stands in for the MLP: all of y is error."""


class Frozen(NamedTuple):
    """Hold the linear model of one prompt."""

    parts: ModelParts
    tokens: Int[Tensor, "tokens"]
    embedding: Float[Tensor, "tokens d_model"]
    steps: list[Step]
    final: Float[Tensor, "d_model"]
    """The final norm's multiplier at the last position."""
    last: Float[Tensor, "d_model"]
    """The last position's normalised state, which the head makes logits of."""

    def sites_of(self, target: int) -> list[tuple[int, Site]]:
        """Return the sites whose latents write to the y of layer ``target``, with the layers that they read."""
        sites = [(number, step.site) for number, step in enumerate(self.steps[: target + 1])]
        return [(number, site) for number, site in sites if site is not None and target in site.padded_decoders]


@torch.no_grad()
def freeze(parts: ModelParts, transcoders: Transcoders, tokens: Int[Tensor, "tokens"]) -> Frozen:
    """Run ``tokens`` (BOS first) and linearise the model there, with ``transcoders`` in place of MLPs.

    The run is repeated here step by step with the model's own attention patterns, so that the linear
    model is exact in the dtype of the model.

    Raises:
        UserError: a transcoder does not fit, or the model is not what this module takes it for.
    """
    writers = writers_of(transcoders)
    _check(parts, writers)
    tokens = tokens.to(parts.device)
    out = parts.model(tokens[None], output_attentions=True, use_cache=False)
    r = embedding = parts.model.get_input_embeddings()(tokens[None])[0]
    steps: list[Step] = []
    waiting = Waiting()
    for number, (layer, pattern) in enumerate(zip(parts.layers, out.attentions, strict=True)):
        attention_in = layer.attention_norm.scale(r)
        added = attend(layer, pattern[0].to(r), r * attention_in)
        post = layer.attention_post_norm
        attention_out = None if post is None else post.scale(added)
        r = r + (added if attention_out is None else added * attention_out)
        mlp_in = layer.mlp_norm.scale(r)
        x = r * mlp_in
        y = mlp_output(layer, x[None])[0]
        site = _site(writers[number], x) if number in writers else None
        error = y if site is None else y - _reconstruction(number, site, x, waiting)
        steps.append(Step(attention_in, pattern[0].to(r), attention_out, mlp_in, y, error, site))
        r = r + y
    final = parts.final_norm.scale(r[-1])
    last = r[-1] * final
    _check_replay(parts, last, out.logits[0, -1])
    return Frozen(parts, tokens, embedding, steps, final, last)


def _reconstruction(
    number: int, site: Site, x: Float[Tensor, "tokens d_model"], waiting: Waiting
) -> Float[Tensor, "tokens d_model"]:
    """Return the transcoder's y of a layer of the active latents as they are; 0 at BOS."""
    y = site.bias
    for target in site.padded_decoders:
        part = site.value[:, None] * site.decoder(target)
        if target == number:
            y = y.index_add(0, site.position, part)
        else:
            waiting.add_(target, torch.zeros_like(y).index_add(0, site.position, part))
    if site.skip is not None:
        y[1:] += x[1:] @ site.skip.T
    return waiting.add_to(number, y)


def attend(
    layer: Layer, pattern: Float[Tensor, "heads to from"], normed: Float[Tensor, "*batch from d_model"]
) -> Float[Tensor, "*batch to d_model"]:
    """Return what a layer's attention puts out with the patterns given, before the norm that may follow it."""
    heads, kv_heads = pattern.shape[0], layer.W_v.shape[0] // layer.head_dim
    v = (normed @ layer.W_v.T).unflatten(-1, (kv_heads, layer.head_dim)).repeat_interleave(heads // kv_heads, -2)
    return torch.einsum("hts,...she->...the", pattern, v).flatten(-2) @ layer.W_o.T


def attend_back(step: Step, layer: Layer, G: Float[Tensor, "to batch d"]) -> Float[Tensor, "from batch d"]:
    """Return the gradient at a layer's input, in the residual stream, from the one after its attention.

    ``G`` may have fewer positions than the prompt: no later one has an influence.
    """
    to, batch, _ = G.shape
    kv_heads = layer.W_v.shape[0] // layer.head_dim
    added = G if step.attention_out is None else G * step.attention_out[:to, None]
    mixed = (added @ layer.W_o).view(to, batch, kv_heads, -1, layer.head_dim)
    pattern = step.pattern[:, :to, :to].view(kv_heads, -1, to, to)
    v = torch.einsum("ghts,tbghe->sbge", pattern, mixed).reshape(to, batch, -1)
    return G + (v @ layer.W_v) * step.attention_in[:to, None]


def walk_back(frozen: Frozen, number: int, G: Float[Tensor, "to batch d"]) -> Iterator[tuple[int, Tensor]]:
    """Yield (layer, gradient at its MLP's y) downwards from layer ``number``; at last (-1, gradient at the embeddings).

    ``G`` is the gradient at the residual stream after layer ``number``.
    """
    for below in range(number, -1, -1):
        yield below, G
        step = frozen.steps[below]
        G = attend_back(step, frozen.parts.layers[below], _skip_back(step, G))
    yield -1, G


def _skip_back(step: Step, G: Tensor) -> Tensor:
    """Add what passes through the transcoder's linear path."""
    if step.site is None or step.site.skip is None:
        return G
    through = (G[1:] @ step.site.skip) * step.mlp_in[1 : len(G), None]
    return torch.cat([G[:1], G[1:] + through])


def mlp_output(layer: Layer, x: Float[Tensor, "*batch tokens d_model"]) -> Float[Tensor, "*batch tokens d_model"]:
    """Return what a layer's MLP, with the norm that may follow it, makes of ``x``."""
    y = layer.mlp(x)
    return y if layer.mlp_out is layer.mlp else layer.mlp_out(y)


def _site(writer: Writer, x: Float[Tensor, "tokens d_model"]) -> Site:
    model = writer.latents
    latents = writer.encode(x[1:].to(model.W_enc.dtype))
    fired = latents.values > 0
    position, latent = latents.rows()[fired] + 1, latents.indices[fired].long()
    encoder = model.W_enc.detach()[latent].to(x) / writer.input_scale
    bias = model.b_enc.detach()[latent].to(x)
    # Recomputed, so that sums are exact in the dtype of x; an active latent is its pre-activation.
    value = (x[position] * encoder).sum(1) + bias
    counts = torch.bincount(position, minlength=len(x))
    occupied = torch.arange(int(counts.max()), device=x.device) < counts[:, None]
    padded = {}
    for (target, rows), output_scale in zip(writer.decoders().items(), writer.output_scales, strict=True):
        padded[target] = x.new_zeros(*occupied.shape, writer.width)
        padded[target][occupied] = rows[latent].to(x) * output_scale
    b_dec = (writer.b_dec.detach().to(x) * writer.output_scale).expand(len(x), -1).clone()
    b_dec[0] = 0
    scale = writer.output_scale / writer.input_scale
    skip = None if writer.W_skip is None else writer.W_skip.detach().to(x) * scale
    return Site(position, latent, value, encoder, bias, occupied, padded, b_dec, skip)


def _check(parts: ModelParts, writers: Mapping[int, Writer]) -> None:
    if not writers:
        raise UserError("transcoders: there is none, so all MLPs would be errors; give one for at least one layer")
    for number, writer in writers.items():
        if not 0 <= number < len(parts.layers):
            raise UserError(f"a transcoder is for layer {number}; this model has layers 0 to {len(parts.layers) - 1}")
        width, d_in = parts.final_norm.gain.shape[0], writer.latents.config.d_in
        if (d_in, writer.width) != (width, width):
            raise UserError(
                f"the transcoder of layer {number} maps {d_in} to {writer.width} dimensions, "
                f"the model has {width}: it was trained on another model"
            )


def _check_replay(parts: ModelParts, last: Tensor, logits: Any) -> None:
    retraced = parts.head.logits(last[None])[0]
    error = float((retraced - logits).norm() / logits.norm())
    if not error < REPLAY_TOLERANCE:
        raise UserError(
            f"model.name: {type(parts.model).__name__} does more than its attention, norms and MLPs: retracing it "
            f"gives other logits (relative error {error:.2g}), so its circuits cannot be traced"
        )
