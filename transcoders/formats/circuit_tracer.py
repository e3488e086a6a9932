"""circuit-tracer's transcoder sets: ``config.yaml`` and ``layer_{i}.safetensors`` for every layer from 0."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from ruamel.yaml import YAML

from transcoders.core.errors import UserError
from transcoders.core.files import read_yaml, replacing
from transcoders.core.tensors import save_tensors
from transcoders.dictionary.transcoder import Transcoder
from transcoders.formats.build import build, check_settings, layout
from transcoders.formats.locate import Source
from transcoders.formats.weights import open_weights

CONFIG = "config.yaml"
TENSORS = layout(W_enc="W_enc", b_enc="b_enc", W_dec="W_dec", b_dec="b_dec")
THRESHOLD = layout(threshold="activation_function.threshold")
SKIP = layout(W_skip="W_skip")
HARMLESS = "model_name feature_input_hook feature_output_hook scan transcoders repo_id revision subfolder fidelity"
HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
"""What the MLP receives and what the block adds, in the names of circuit-tracer's model."""


def read(source: Source, device: torch.device | str) -> Transcoder:
    """Read one layer of a set; ``source.folder`` is the file itself."""
    file = source.folder
    settings = settings_of(file.parent, "transcoder_set")
    weights = open_weights(file)
    jumps = THRESHOLD["threshold"].name in weights.tensors
    skips = SKIP["W_skip"].name in weights.tensors
    expected = {**TENSORS, **(THRESHOLD if jumps else {}), **(SKIP if skips else {})}
    layer = _layer(file, settings.get("transcoders"))
    hooks = {key: f"blocks.{layer}.{settings[full]}" for key, full in zip(("hook_in", "hook_out"), HOOKS, strict=True)}
    provenance = {
        "source": source.name,
        "format": "circuit-tracer",
        "layer": layer,
        "model": settings.get("model_name"),
        **hooks,
        "gain_applied": settings["feature_input_hook"] != "ln2.hook_normalized",
    }
    return build(weights, expected, "jumprelu" if jumps else "relu", None, provenance, device)


def settings_of(folder: Path, kind: str) -> dict[str, Any]:
    """Return the content of ``config.yaml`` in ``folder``.

    Raises:
        UserError: it is missing or damaged, of another kind, or does not say what is read and predicted.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise UserError(f"{file}: is missing; it says what the transcoders read and predict")
    settings = read_yaml(file, str(file))
    for key in HOOKS:
        if not isinstance(settings, dict) or not isinstance(settings.get(key), str):
            raise UserError(f"{file}: {key} is missing; it says what the transcoders read and predict")
    if not isinstance(settings.get("model_name"), str | None):
        raise UserError(f"{file}: model_name is no text; correct it")
    check_settings(file, settings, HARMLESS, {"model_kind": kind})
    return settings


def _layer(file: Path, listed: Any) -> int:
    """Return the layer of ``file``: its place among ``transcoders`` in config.yaml, else the number in its name."""
    config = file.parent / CONFIG
    if not isinstance(listed, list | None):
        raise UserError(f"{config}: transcoders is no list; expected the files of layers 0, 1, ...")
    places = [layer for layer, path in enumerate(listed or ()) if PurePosixPath(str(path)).name == file.name]
    named = re.fullmatch(r"layer_(\d+)", file.stem)
    layers = set(places) | ({int(named[1])} if named else set())
    if len(layers) != 1:
        claimed = " and ".join(map(str, sorted(layers))) or "none"
        raise UserError(
            f"{file}: the layers that its name and {config} say: {claimed}; name it layer_<i>.safetensors, or list the "
            f"files of layers 0, 1, ... as transcoders in {config}"
        )
    return layers.pop()


def write(models: Mapping[int, Transcoder], folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write raw-unit transcoders without TopK, by layer, as a set that ``load_transcoder_set`` reads.

    Raises:
        UserError: layers from 0 on are missing, or the transcoders differ in size or model.
    """
    layers = sorted(models)
    if layers != list(range(len(layers))):
        missing = sorted(set(range(layers[-1] + 1)) - set(layers))
        raise UserError(
            f"circuit-tracer wants a transcoder for every layer from 0; missing: {missing}; name their runs"
        )
    configs = [models[layer].config for layer in layers]
    for what in ("d_in", "d_out", "d_hidden", "skip"):
        values = {getattr(config, what) for config in configs}
        if len(values) > 1:
            raise UserError(f"circuit-tracer wants one {what} for all layers; these runs have {sorted(values)}")
    if configs[0].d_in != configs[0].d_out:
        raise UserError(f"circuit-tracer knows one width: d_in = {configs[0].d_in}, d_out = {configs[0].d_out}")
    names = {str(config.provenance.get("model")) for config in configs}
    if len(names) > 1:
        raise UserError(f"circuit-tracer wants transcoders of one model; these are of {', '.join(sorted(names))}")
    placements = {**TENSORS, **THRESHOLD, **SKIP}
    for layer, model in models.items():
        tensors = {placements[name].name: value for name, value in model.named_parameters()}
        save_tensors(folder / f"layer_{layer}.safetensors", tensors)
    with replacing(folder / CONFIG) as temporary:
        content = {"model_name": names.pop(), "model_kind": "transcoder_set", **HOOKS, "scan": folder.name}
        YAML().dump(
            content | {"transcoders": [f"layer_{layer}.safetensors" for layer in layers], **metadata}, temporary
        )
