"""Where a transcoder's input and output are read: the one place that knows hook names.

``x`` is what the MLP receives (after the pre-norm and its gain), ``y`` what the block adds to the
residual stream (after a post-norm, where the family has one). TransformerLens's
``ln2.hook_normalized`` is *before* the gain and ``hook_mlp_in`` is the residual stream: neither is x.

What lies between the two is not looked up by family, but seen in a forward pass: the modules that make y of x.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from transcoders.core.errors import UserError
from transcoders.language.settings import HookSettings
from transcoders.language.trace import find_path, hugging_face_modules, source_of, traced

log = logging.getLogger(__name__)

PROBE_TOKENS = 8
TOLERANCE = 1e-2


@dataclass(frozen=True)
class Tap:
    """The two hook points of one layer, in TransformerLens's and in Hugging Face's names."""

    layer: int
    hook_in: str
    hook_out: str
    hf_hook_in: str
    """The module whose output, or else whose input, x is."""
    hf_hook_out: str | None
    """The module whose output y is; None where the block scales it."""
    mlp: tuple[str, ...]
    """The modules that make y of x, one after the other: the MLP (or its parts), and a post-norm."""
    mlp_scale: float
    """What the block multiplies the last one's output with: 1 but in Granite's families."""


def resolve_tap(bridge: Any, layer: int, hooks: HookSettings) -> Tap:
    """Return the tap of ``layer`` in ``bridge``, after a check that an MLP makes y of x and that the block adds y.

    Raises:
        UserError: the model lacks the layer or one of the hook points, or they are no MLP's input and output.
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
    return _checked_tap(bridge, layer, names[0], names[1])


@torch.no_grad()
def _checked_tap(bridge: Any, layer: int, hook_in: str, hook_out: str) -> Tap:
    """Run the model on a few tokens, without and with y set to zero, and see what makes y and what becomes of it."""
    block, model = bridge.blocks[layer], bridge.original_model
    embeddings = model.get_input_embeddings().weight
    tokens = (torch.arange(PROBE_TOKENS, device=embeddings.device) % len(embeddings))[None]
    at_in, at_out = (bridge.hook_dict[name].name for name in (hook_in, hook_out))
    caught: dict[str, Tensor] = {}

    def catch(value: Tensor, hook: Any) -> None:
        caught[hook.name] = value.clone()

    def residual_stream(hooks: list[Any]) -> Tensor:
        with traced(iter([("block", block)])) as calls, bridge.hooks(fwd_hooks=hooks):
            model.base_model(tokens, use_cache=False)
        return calls[-1].output

    with traced(hugging_face_modules(block, block.name)) as calls:
        clean = residual_stream([(at_in, catch), (at_out, catch)])
    x, y = caught[at_in], caught[at_out]
    path = find_path(calls, x, y)
    if path is None:
        raise UserError(_refusal(f"no MLP of layer {layer} maps {hook_in!r} to {hook_out!r}"))
    added = clean - residual_stream([(at_out, lambda value, hook: torch.zeros_like(value))])
    error = float((added.reshape(-1) - y.reshape(-1)).norm() / y.norm())
    if not error < TOLERANCE:
        raise UserError(_refusal(f"layer {layer} does not add {hook_out!r} to the residual stream"))
    log.info("layer %d: %s maps x to y, and the block adds y (relative error %.1e)", layer, path.modules, error)
    return Tap(
        layer=layer,
        hook_in=hook_in,
        hook_out=hook_out,
        hf_hook_in=f"{source}.output" if (source := source_of(calls, x)) else f"{path.modules[0]}.input",
        hf_hook_out=f"{path.modules[-1]}.output" if path.scale == 1 else None,
        mlp=path.modules,
        mlp_scale=path.scale,
    )


def _refusal(fault: str) -> str:
    defaults = HookSettings()
    return (
        f"collect.hooks: {fault}; name the MLP's input and what the block adds to the residual stream "
        f"(in most models {defaults.input} and {defaults.output}), or choose another model"
    )


def input_gain(bridge: Any, layer: int) -> list[float] | None:
    """Return the pre-norm's gain ``1 + w`` [d_model] in Gemma's families, None elsewhere.

    Dictionaries trained before the gain (Gemma Scope 1) read ``x / gain``.
    """
    norm = getattr(bridge.blocks[layer].original_component, "pre_feedforward_layernorm", None)
    if norm is None or not bridge.original_model.config.model_type.startswith(("gemma2", "gemma3_text")):
        return None
    return (1.0 + norm.weight.detach().float()).tolist()


def tap_of(attributes: Mapping[str, Any]) -> Tap:
    """Return where the activations of a store with these ``attributes`` were read."""
    values = {field.name: attributes[field.name] for field in fields(Tap)}
    return Tap(**{**values, "mlp": tuple(values["mlp"])})


def attributes_of(bridge: Any, tap: Tap) -> dict[str, Any]:
    """Return what a store of activations says of where they were read."""
    return {**asdict(tap), "gain_applied": True, "input_gain": input_gain(bridge, tap.layer)}
