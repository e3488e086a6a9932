"""Gemma Scope (Gemma 2, ``params.npz``) and Gemma Scope 2 (Gemma 3, ``params.safetensors``)."""

import re
from typing import Any

import torch

from transcoders.core.errors import UserError
from transcoders.core.files import read_json
from transcoders.dictionary.transcoder import Transcoder
from transcoders.formats.build import build, check_settings, layout
from transcoders.formats.locate import Source
from transcoders.formats.weights import DOWNLOAD, open_weights

FIRST = layout(W_enc="W_enc.T", b_enc="b_enc", W_dec="W_dec", b_dec="b_dec", threshold="threshold")
SECOND = layout(W_enc="w_enc.T", b_enc="b_enc", W_dec="w_dec", b_dec="b_dec", threshold="threshold")
HARMLESS = "architecture model_name hf_hook_point_in hf_hook_point_out affine_connection width l0 type"
AFFINE = layout(W_skip="affine_skip_connection.T")  # [d_in, d_out]


def read_first(source: Source, device: torch.device | str) -> Transcoder:
    """Read a folder of Gemma Scope: its path alone tells the layer, the model and the L0.

    Its input is the norm's output *before* the gain (``ln2.hook_normalized``): ``gain_applied`` is false.
    """
    layer, l0 = _number(r"layer_(\d+)", source.path), _number(r"average_l0_(\d+)", source.path)
    size = re.search(r"gemma-scope-(\d+b)(?:-pt|(-it))?", source.path)
    prefix = f"blocks.{layer}."
    provenance = {
        "source": source.name,
        "format": "gemma-scope",
        "layer": layer,
        "model": f"google/gemma-2-{size[1]}{size[2] or ''}" if size else None,
        "hook_in": prefix + "ln2.hook_normalized",
        "hook_out": prefix + "hook_mlp_out",
        "hf_hook_in": None,
        "hf_hook_out": f"model.layers.{layer}.post_feedforward_layernorm.output",
        "gain_applied": False,
    }
    return build(open_weights(source.folder / "params.npz"), FIRST, "jumprelu", l0, provenance, device)


def read_second(source: Source, device: torch.device | str) -> Transcoder:
    """Read a folder of Gemma Scope 2, with or without its ``config.json``.

    Raises:
        UserError: it is no per-layer transcoder, or ``config.json`` contradicts the tensors or the path.
    """
    weights = open_weights(source.folder / "params.safetensors")
    if re.search(r"resid_post|attn_out|mlp_out|crosscoder|(^|[/_])clt", source.path):
        raise UserError(f"{source.name}: is no per-layer transcoder; choose one under transcoder or transcoder_all")
    config = _config(source)
    affine = config["affine_connection"]
    layer = _layer(config, source)
    provenance = {
        "source": source.name,
        "format": "gemma-scope-2",
        "layer": layer,
        "model": model_name(config["model_name"]),
        "hook_in": f"blocks.{layer}.mlp.hook_in",
        "hook_out": f"blocks.{layer}.hook_mlp_out",
        "hf_hook_in": config["hf_hook_point_in"],
        "hf_hook_out": config["hf_hook_point_out"],
        "gain_applied": True,
    }
    has_affine = AFFINE["W_skip"].name in weights.tensors
    if has_affine != affine:
        raise UserError(
            f"{source.name}: affine_connection is {str(affine).lower()}, but params.safetensors "
            f"{'holds' if has_affine else 'lacks'} {AFFINE['W_skip'].name}; the two files are not of one transcoder"
        )
    return build(weights, {**SECOND, **(AFFINE if affine else {})}, "jumprelu", None, provenance, device)


def _config(source: Source) -> dict[str, Any]:
    """Return ``config.json``, or what the path says where there is none."""
    layer, repository = _number(r"layer_(\d+)", source.path), re.search(r"gemma-scope-2-\w+-(?:pt|it)", source.path)
    inferred = {
        "architecture": "jump_relu",
        "model_name": repository[0].replace("gemma-scope-2", "gemma-3") if repository else None,
        "hf_hook_point_in": f"model.layers.{layer}.pre_feedforward_layernorm.output",
        "hf_hook_point_out": f"model.layers.{layer}.post_feedforward_layernorm.output",
        "affine_connection": bool(re.search(r"_affine/?$", source.path)),
    }
    file = source.folder / "config.json"
    config = inferred | (read_json(file, DOWNLOAD) if file.is_file() else {})
    check_settings(file, config, HARMLESS, {})
    for key, value in config.items():
        optional = key == "model_name" and value is None
        if key in inferred and not optional and type(value) is not (bool if key == "affine_connection" else str):
            raise UserError(f"{file}: {key} is {value!r}; expected a {'truth value' if key[0] == 'a' else 'text'}")
    if config["architecture"] != "jump_relu":
        raise UserError(f"{file}: architecture is {config['architecture']!r}; known: 'jump_relu'")
    return config


def _layer(config: dict[str, Any], source: Source) -> int | None:
    configured, named = _number(r"layers\.(\d+)\.", config["hf_hook_point_in"]), _number(r"layer_(\d+)", source.path)
    if configured is not None and named is not None and configured != named:
        raise UserError(
            f"{source.name}: config.json says layer {configured}, the folder's name layer {named}; which is it?"
        )
    return named if configured is None else configured


def model_name(name: str | None) -> str | None:
    """Spell the name as the Hub does: config.json writes ``gemma-v3-…``, and the 270m model has no ``-pt``."""
    if name is None:
        return None
    name = "google/" + name.removeprefix("google/").replace("-v3", "-3")
    return name.removesuffix("-pt") if "270m" in name else name


def _number(pattern: str, text: str) -> int | None:
    match = re.search(pattern, text)
    return int(match[1]) if match else None
