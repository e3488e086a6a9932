"""Where a transcoder's input and output are read: the one place that knows hook names.

``x`` is what the MLP receives (after the pre-norm and its gain), ``y`` what the block adds to the
residual stream (after a post-norm, where the family has one). TransformerLens's
``ln2.hook_normalized`` is *before* the gain and ``hook_mlp_in`` is the residual stream: neither is x.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from transcoders.core.errors import UserError
from transcoders.language.settings import HookSettings


@dataclass(frozen=True)
class Tap:
    """The two hook points of one layer, in TransformerLens's and in Hugging Face's names."""

    layer: int
    hook_in: str
    hook_out: str
    hf_hook_in: str
    hf_hook_out: str


def resolve_tap(bridge: Any, layer: int, hooks: HookSettings) -> Tap:
    """The tap of ``layer`` in ``bridge``.

    Raises:
        UserError: the model lacks the layer or one of the hook points.
    """
    n_layers = len(bridge.blocks)
    if not 0 <= layer < n_layers:
        raise UserError(f"collect.layers: layer {layer} is out of range; this model has layers 0 to {n_layers - 1}")
    names = []
    for key in ("input", "output"):
        name = getattr(hooks, key).format(layer=layer)
        if name not in bridge.hook_dict:
            block = f"blocks.{layer}."
            known = sorted(n for n in bridge.hook_dict if n.startswith(block) and "attn" not in n)
            raise UserError(f"collect.hooks.{key}: this model has no hook point {name!r}; it has " + ", ".join(known))
        names.append(name)
    post_norm = _post_norm(bridge, layer)
    prefix = f"model.layers.{layer}"
    return Tap(
        layer=layer,
        hook_in=names[0],
        hook_out=names[1],
        hf_hook_in=f"{prefix}.pre_feedforward_layernorm.output" if post_norm else f"{prefix}.mlp.input",
        hf_hook_out=f"{prefix}.post_feedforward_layernorm.output" if post_norm else f"{prefix}.mlp.output",
    )


def _post_norm(bridge: Any, layer: int) -> Any:
    return getattr(bridge.blocks[layer].original_component, "post_feedforward_layernorm", None)


def input_gain(bridge: Any, layer: int) -> list[float] | None:
    """The pre-norm's gain ``1 + w`` [d_model] in Gemma's families, None elsewhere.

    Dictionaries trained before the gain (Gemma Scope 1) read ``x / gain``.
    """
    norm = getattr(bridge.blocks[layer].original_component, "pre_feedforward_layernorm", None)
    return None if norm is None else (1.0 + norm.weight.detach().float()).tolist()


def tap_of(attributes: Mapping[str, Any]) -> Tap:
    """Return where the activations of a store with these ``attributes`` were read."""
    return Tap(**{field.name: attributes[field.name] for field in fields(Tap)})


def attributes_of(bridge: Any, tap: Tap) -> dict[str, Any]:
    """Return what a store of activations says of where they were read."""
    return {
        "layer": tap.layer,
        "hook_in": tap.hook_in,
        "hook_out": tap.hook_out,
        "hf_hook_in": tap.hf_hook_in,
        "hf_hook_out": tap.hf_hook_out,
        "gain_applied": True,
        "input_gain": input_gain(bridge, tap.layer),
    }


@torch.inference_mode()
def check_tap(bridge: Any, tap: Tap, x: Float[Tensor, "tokens d"], y: Float[Tensor, "tokens d"]) -> float:
    """Assert that the model's own MLP and post-norm map ``x`` to ``y``; return the relative error.

    Raises:
        UserError: they do not, so the hooks are not an MLP's input and output.
    """
    mapped = bridge.blocks[tap.layer].original_component.mlp(x)
    post_norm = _post_norm(bridge, tap.layer)
    if post_norm is not None:
        mapped = post_norm(mapped)
    error = float((mapped - y).norm() / y.norm())
    if not error < 1e-2:
        raise UserError(
            f"collect.hooks: the MLP of layer {tap.layer} does not map {tap.hook_in!r} to "
            f"{tap.hook_out!r} (relative error {error:.2g}); name the MLP's input and what the "
            "block adds to the residual stream, or remove collect.hooks to use the defaults"
        )
    return error
