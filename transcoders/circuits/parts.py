"""The parts of a language model that a circuit runs through, found once for Gemma's and Llama's layouts."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transcoders.core.errors import UserError
from transcoders.language.head import Head, read_head
from transcoders.language.model import load_model

Replacement = Callable[[Float[Tensor, "batch tokens d_model"]], Float[Tensor, "batch tokens d_model"]]


LAYER_PARTS = {
    "self_attn",
    "mlp",
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
}
"""All that a layer may hold: with anything else it computes something else."""


class Norm(NamedTuple):
    """Hold an RMSNorm: ``r * scale(r)``."""

    gain: Float[Tensor, "d_model"]
    eps: float

    def scale(self, r: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return what ``r`` is multiplied with, gain included."""
        return self.gain * torch.rsqrt(r.square().mean(-1, keepdim=True) + self.eps)


class Layer(NamedTuple):
    """Name the parts of one decoder layer."""

    attention_norm: Norm
    W_v: Float[Tensor, "kv_heads*head_dim d_model"]
    W_o: Float[Tensor, "d_model heads*head_dim"]
    head_dim: int
    attention_post_norm: Norm | None
    mlp_norm: Norm
    mlp_in: nn.Module
    """The module whose output is x, what the MLP receives."""
    mlp: nn.Module
    mlp_out: nn.Module
    """The module whose output is y, what is added to the residual stream."""


class ModelParts(NamedTuple):
    """Name the parts of a language model; the tensors are the model's, not copies."""

    model: Any
    layers: list[Layer]
    final_norm: Norm
    head: Head

    @property
    def device(self) -> torch.device:
        """Return the device that the model is on."""
        return self.final_norm.gain.device

    @property
    def unembedding(self) -> Float[Tensor, "vocabulary d_model"]:
        """Return the directions that raise each token's logit, before a soft-cap if there is one, as rows."""
        return self.head.weight if self.head.scale == 1 else self.head.weight * self.head.scale


def load_parts(folder: Path, device: torch.device) -> ModelParts:
    """Load a fetched model in float32 with attention that returns its patterns.

    Raises:
        UserError: the model's layers are of no kind known here.
    """
    return take_apart(load_model(folder, device, attention="eager"))


def take_apart(model: Any) -> ModelParts:
    """Find the parts of a Hugging Face model that has RMSNorms and no attention biases.

    Raises:
        UserError: its layers are of another kind.
    """
    model.eval().requires_grad_(False)
    body = model.base_model
    try:
        layers, final_norm, head = [_layer(layer) for layer in body.layers], _norm(body.norm), read_head(model)
        if head.bias is not None:
            raise AttributeError("its logits have a bias")
        return ModelParts(model, layers, final_norm, head)
    except AttributeError as error:
        raise UserError(
            f"model.name: circuits need layers like Gemma's or Llama's, and {type(model).__name__} has others ({error})"
        ) from None


def _layer(layer: Any) -> Layer:
    if others := {name for name, _ in layer.named_children()} - LAYER_PARTS:
        raise AttributeError(f"a layer has {', '.join(sorted(others))}")
    if getattr(layer, "residual_multiplier", 1) != 1:
        raise AttributeError("a layer scales what it adds to the residual stream")
    attention = layer.self_attn
    if attention.v_proj.bias is not None or attention.o_proj.bias is not None:
        raise AttributeError("its attention has biases")
    sandwich = hasattr(layer, "pre_feedforward_layernorm")
    mlp_in = layer.pre_feedforward_layernorm if sandwich else layer.post_attention_layernorm
    return Layer(
        attention_norm=_norm(layer.input_layernorm),
        W_v=attention.v_proj.weight.detach(),
        W_o=attention.o_proj.weight.detach(),
        head_dim=attention.head_dim,
        attention_post_norm=_norm(layer.post_attention_layernorm) if sandwich else None,
        mlp_norm=_norm(mlp_in),
        mlp_in=mlp_in,
        mlp=layer.mlp,
        mlp_out=layer.post_feedforward_layernorm if sandwich else layer.mlp,
    )


@torch.no_grad()
def _norm(module: Any) -> Norm:
    """Read an RMSNorm's gain and epsilon; what it does to ones tells whether the gain is w or 1 + w."""
    eps = float(getattr(module, "eps", None) or module.variance_epsilon)
    weight = module.weight.detach()
    scaled_ones = module(torch.ones_like(weight)) * math.sqrt(1 + eps)
    for gain in (1 + weight, weight.clone()):
        if torch.allclose(gain, scaled_ones, rtol=1e-4, atol=1e-5):
            return Norm(gain, eps)
    raise AttributeError(f"{type(module).__name__} is no RMSNorm")


@contextmanager
def replaced(parts: ModelParts, replacements: Mapping[int, Replacement]) -> Iterator[None]:
    """Make the output y of the layers' MLPs what ``replacements`` make of their input x, while this lasts.

    The first position, BOS, keeps the MLP's output: transcoders never see it.
    """
    handles = []
    for number, replace in replacements.items():
        handles += _splice(parts.layers[number], replace)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _splice(layer: Layer, replace: Replacement) -> list[Any]:
    caught: list[Tensor] = []

    def read(module: nn.Module, arguments: Any, x: Tensor) -> None:
        caught[:] = [x]

    def write(module: nn.Module, arguments: Any, y: Tensor) -> Tensor:
        return torch.cat([y[:, :1], replace(caught.pop())[:, 1:]], dim=1)

    return [layer.mlp_in.register_forward_hook(read), layer.mlp_out.register_forward_hook(write)]
