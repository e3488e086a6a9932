"""circuit-tracer's cross-layer transcoders: ``config.yaml``, and ``W_enc_{i}`` and ``W_dec_{i}`` of every layer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from transcoders.core.errors import UserError
from transcoders.core.files import replacing
from transcoders.core.tensors import save_tensors
from transcoders.dictionary.crosslayer.config import CrossLayerConfig
from transcoders.dictionary.crosslayer.transcoder import CrossLayerTranscoder
from transcoders.formats.circuit_tracer import CONFIG, HOOKS, settings_of
from transcoders.formats.crosslayer.build import check, empty, fill_, numbered, sizes_of
from transcoders.formats.locate import Source
from transcoders.formats.weights import open_weights

KIND = "cross_layer_transcoder"
ENCODERS, DECODERS = "W_enc_", "W_dec_"
"""Prefixes of the files; the first hold a layer's biases and thresholds too."""


def read(source: Source, device: torch.device | str) -> CrossLayerTranscoder:
    """Read a folder; as circuit-tracer does it takes the thresholds of all layers, or of none, by the first.

    Raises:
        UserError: a layer is missing, or a tensor is missing, unknown or of a wrong shape.
    """
    settings = settings_of(source.folder, KIND)
    decoders = [open_weights(file) for file in numbered(source.folder, DECODERS)]
    sizes = sizes_of(decoders[0], "W_dec_0")
    layers, d_hidden, d = sizes
    numbered(source.folder, DECODERS, layers)
    encoders = [open_weights(file) for file in numbered(source.folder, ENCODERS, layers)]
    jumps = "threshold_0" in encoders[0].tensors
    for i, (encoder, decoder) in enumerate(zip(encoders, decoders, strict=True)):
        shapes = {f"W_enc_{i}": (d_hidden, d), f"b_enc_{i}": (d_hidden,), f"b_dec_{i}": (d,)}
        check(encoder, shapes | ({f"threshold_{i}": (d_hidden,)} if jumps else {}))
        check(decoder, {f"W_dec_{i}": (d_hidden, layers - i, d)})
    hook_in, hook_out = (settings[key] for key in HOOKS)
    provenance = {
        "source": source.name,
        "format": "circuit-tracer",
        "model": settings.get("model_name"),
        "hook_in": hook_in,
        "hook_out": hook_out,
        "gain_applied": hook_in != "ln2.hook_normalized",
    }
    model = empty(sizes, "jumprelu" if jumps else "relu", False, provenance, device)
    for i, (encoder, decoder) in enumerate(zip(encoders, decoders, strict=True)):
        for name, into in model.tensors(i).items():
            fill_(into, decoder if name == "W_dec" else encoder, f"{name}_{i}")
    return model


def write(model: CrossLayerTranscoder, folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write a raw-unit transcoder without TopK that ``check_writable`` accepts, as ``load_clt`` reads it."""
    config = model.config
    layers = len(config.layers)
    for i in range(layers):
        tensors = model.tensors(i)
        W_dec = tensors.pop("W_dec")
        beyond = W_dec.new_zeros(config.d_hidden, layers - i - W_dec.shape[1], config.d_model)
        save_tensors(folder / f"{ENCODERS}{i}.safetensors", {f"{name}_{i}": value for name, value in tensors.items()})
        save_tensors(folder / f"{DECODERS}{i}.safetensors", {f"W_dec_{i}": torch.cat([W_dec, beyond], 1)})
    content = {"model_name": str(config.provenance.get("model")), "model_kind": KIND, **HOOKS, "scan": folder.name}
    with replacing(folder / CONFIG) as temporary:
        YAML().dump({**content, **metadata}, temporary)


def check_writable(config: CrossLayerConfig, layers: int) -> None:
    """Make sure that circuit-tracer's files have a place for all that a transcoder of a model of ``layers`` does.

    Raises:
        UserError: its layers are not those from 0 to ``layers - 1``, or it has a skip connection.
    """
    missing = sorted(set(range(max(layers, config.layers[-1] + 1))) - set(config.layers))
    if missing:
        raise UserError(
            f"circuit-tracer wants a cross-layer transcoder of all layers of its model; missing: {missing}; "
            "train one across all of them"
        )
    if config.skip:
        raise UserError("circuit-tracer's cross-layer files have no place for a skip connection; export one without")
