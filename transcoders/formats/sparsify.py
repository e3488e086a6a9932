"""sparsify's transcoders: ``cfg.json`` and ``sae.safetensors``."""

import re
from pathlib import Path
from typing import Any

import torch

from transcoders.core.errors import UserError
from transcoders.core.files import read_json, write_json
from transcoders.core.tensors import save_tensors
from transcoders.dictionary.transcoder import Transcoder
from transcoders.formats.build import build, check_settings, check_sizes, layout
from transcoders.formats.locate import Source
from transcoders.formats.weights import DOWNLOAD, open_weights

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
TENSORS = layout(W_enc="encoder.weight", b_enc="encoder.bias", W_dec="W_dec", b_dec="b_dec")
SKIP = layout(W_skip="W_skip")
ACTIVATIONS = ("topk", "groupmax")
HARMLESS = """activation expansion_factor normalize_decoder num_latents k multi_topk skip_connection transcode d_in
    metadata"""
"""Of these ``normalize_decoder`` and ``multi_topk`` matter in training alone."""


def read(source: Source, device: torch.device | str) -> Transcoder:
    """Read a folder as sparsify's ``SparseCoder.save_to_disk`` writes it.

    Raises:
        UserError: it is an autoencoder, or its activation is unknown.
    """
    config = read_json(source.folder / CONFIG, DOWNLOAD)
    if config.get("transcode") is not True:
        raise UserError(f"{source.name}: transcode is not true: an autoencoder maps a place to itself, not x to y")
    activation = config.get("activation", "topk")
    if activation not in ACTIVATIONS:
        raise UserError(f"{source.name}: activation is {activation!r}; known: {', '.join(ACTIVATIONS)}")
    check_settings(source.folder / CONFIG, config, HARMLESS, {"signed": False})
    k = config.get("k")
    if not isinstance(k, int):
        raise UserError(f"{source.name}: k is {k!r} in {CONFIG}; expected the number of active latents")
    layer = re.search(r"layers[._](\d+)", source.path)
    provenance = {
        "source": source.name,
        "format": "sparsify",
        "layer": int(layer[1]) if layer else None,
        "gain_applied": True,
    }
    expected = {**TENSORS, **(SKIP if config.get("skip_connection") else {})}
    model = build(open_weights(source.folder / WEIGHTS), expected, activation, k, provenance, device)
    sizes = {"d_in": model.config.d_in}
    if config.get("num_latents"):  # 0: as many as the expansion factor gives
        sizes["num_latents"] = model.config.d_hidden
    check_sizes(source.folder / CONFIG, config, sizes)
    return model


def write(model: Transcoder, folder: Path, metadata: dict[str, Any]) -> None:
    """Write a raw-unit TopK or GroupMax transcoder as a folder that ``SparseCoder.load_from_disk`` reads.

    Raises:
        UserError: d_in is not d_out, which sparsify has no place for.
    """
    config = model.config
    if config.d_in != config.d_out:
        raise UserError(f"sparsify knows one width, but d_in = {config.d_in}, d_out = {config.d_out}; use --to saelens")
    placements = {**TENSORS, **SKIP}
    save_tensors(folder / WEIGHTS, {placements[name].name: value for name, value in model.named_parameters()})
    write_json(
        folder / CONFIG,
        {
            "activation": config.encoder,
            "num_latents": config.d_hidden,
            "k": config.k,
            "transcode": True,
            "skip_connection": config.skip,
            "normalize_decoder": False,
            "multi_topk": False,
            "d_in": config.d_in,
            "metadata": metadata,
        },
    )
