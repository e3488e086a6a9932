"""Files of a cross-layer transcoder: one for each layer's weights, so that no more than a layer is read at a time."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from transcoders.core.errors import DAMAGE, UserError
from transcoders.core.files import sha256_of, write_json
from transcoders.core.places import place, writing
from transcoders.core.tensors import save_tensors
from transcoders.dictionary.crosslayer.config import CrossLayerConfig
from transcoders.dictionary.crosslayer.transcoder import CrossLayerTranscoder
from transcoders.dictionary.transcoder import CONFIG

CHECKSUMS = "layers_sha256"


def save(model: CrossLayerTranscoder, folder: Path | str) -> None:
    """Write a file for each layer and ``config.json`` into ``folder``, a local one or any that fsspec knows.

    ``layer_<n>.safetensors`` holds the layer's W_enc [F, d], b_enc [F], W_dec [F, targets, d] (the first target is the
    layer itself), threshold [F], b_dec [d] and W_skip [d, d], as far as there are some.

    Raises:
        UserError: the URL cannot be written to.
    """
    with writing(place(folder), last=CONFIG) as local:
        for number in range(len(model.config.layers)):
            save_tensors(local / model.config.file(number), model.tensors(number))
        write_config(local, model.config)


def load(folder: Path | str, device: torch.device | str = "cpu") -> CrossLayerTranscoder:
    """Load what ``save`` wrote into a local folder, one layer at a time.

    Raises:
        UserError: the folder or a file is missing or damaged, or shapes disagree.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: holds no {CONFIG}; train the run, or correct the path")
    try:
        content = json.loads((folder / CONFIG).read_text())
        checksums = content.pop(CHECKSUMS)
        model = CrossLayerTranscoder(CrossLayerConfig.model_validate(content)).to(device)
        for number in range(len(model.config.layers)):
            _load_layer_(model, number, folder, checksums)
    except (*DAMAGE, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: not a readable cross-layer transcoder ({reason}); train it again") from None
    return model.requires_grad_(False)


def write_config(folder: Path, config: CrossLayerConfig) -> None:
    """Write ``config.json`` beside the weights in ``folder``, with their hashes: loading then notices a flipped bit."""
    files = [config.file(number) for number in range(len(config.layers))]
    checksums = {file: sha256_of(folder / file) for file in files}
    write_json(folder / CONFIG, {**config.model_dump(mode="json"), CHECKSUMS: checksums})


def is_cross_layer(folder: Path) -> bool:
    """Say whether ``folder`` holds what ``save`` wrote, whole or not."""
    try:
        return CHECKSUMS in json.loads((folder / CONFIG).read_text())
    except DAMAGE:
        return False


@torch.no_grad()
def _load_layer_(model: CrossLayerTranscoder, number: int, folder: Path, checksums: dict[str, str]) -> None:
    file = folder / model.config.file(number)
    if not file.is_file():
        raise UserError(f"{folder}: holds no {file.name}; train the run again")
    if sha256_of(file) != checksums[file.name]:
        raise UserError(f"{file}: is damaged (its sha256 is not that in {CONFIG}); train it again")
    ours, theirs = model.tensors(number), load_file(file, device=str(model.b_dec.device))
    shapes = [{name: tuple(value.shape) for name, value in tensors.items()} for tensors in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise UserError(f"{file}: holds {shapes[1]}, but {CONFIG} says {shapes[0]}; they are not of one model")
    for name, value in theirs.items():
        ours[name].copy_(value)
