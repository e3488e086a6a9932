"""Gemma Scope 2's cross-layer transcoders: ``clt/<name>/params_layer_{i}.safetensors`` for every layer, no config."""

import re

import torch
from torch import Tensor

from transcoders.dictionary.crosslayer.transcoder import CrossLayerTranscoder
from transcoders.formats.crosslayer.build import check, empty, fill_, numbered, sizes_of
from transcoders.formats.gemma_scope import model_name
from transcoders.formats.locate import Source
from transcoders.formats.weights import Weights, open_weights

PREFIX = "params_layer_"
AFFINE = "affine_skip_connection"


def read(source: Source, device: torch.device | str) -> CrossLayerTranscoder:
    """Read a folder of Gemma Scope 2's ``clt``: its input is the norm's output after the gain.

    Raises:
        UserError: a layer is missing, or a tensor is missing, unknown or of a wrong shape.
    """
    files = [open_weights(file) for file in numbered(source.folder, PREFIX)]
    sizes = sizes_of(files[0], "w_dec")
    layers, d_hidden, d = sizes
    numbered(source.folder, PREFIX, layers)
    skip = AFFINE in files[0].tensors
    shapes = {"w_enc": (d, d_hidden), "w_dec": (d_hidden, layers, d), "b_dec": (d,)}
    shapes |= dict.fromkeys(("b_enc", "threshold"), (d_hidden,)) | ({AFFINE: (d, d)} if skip else {})
    for weights in files:
        check(weights, shapes)
    repository = re.search(r"gemma-scope-2-\w+-(?:pt|it)", source.path)
    provenance = {
        "source": source.name,
        "format": "gemma-scope-2",
        "model": model_name(repository[0].replace("gemma-scope-2", "gemma-3") if repository else None),
        "hook_in": "mlp.hook_in",
        "hook_out": "hook_mlp_out",
        "gain_applied": True,
    }
    model = empty(sizes, "jumprelu", skip, provenance, device)
    for layer, weights in enumerate(files):
        _fill_layer_(model.tensors(layer), weights, layer)
    return model


def _fill_layer_(tensors: dict[str, Tensor], weights: Weights, layer: int) -> None:
    fill_(tensors["W_enc"].T, weights, "w_enc")
    fill_(tensors["W_dec"], weights, "w_dec", lambda piece: piece[:, layer:])  # what is before is not used
    for name in ("b_enc", "b_dec", "threshold"):
        fill_(tensors[name], weights, name)
    if "W_skip" in tensors:
        fill_(tensors["W_skip"].T, weights, AFFINE)
