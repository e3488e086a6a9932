"""Whose file is this? ``transcoders.load`` comes here: it reads ours, and what other tools wrote."""

from collections.abc import Callable
from pathlib import Path

import torch

from transcoders.core.errors import UserError
from transcoders.dictionary.crosslayer import files
from transcoders.dictionary.crosslayer.transcoder import CrossLayerTranscoder
from transcoders.dictionary.dictionary import Dictionary
from transcoders.dictionary.transcoder import WEIGHTS, Transcoder
from transcoders.formats import circuit_tracer, gemma_scope, saelens, sparsify
from transcoders.formats.crosslayer import circuit_tracer as cross_circuit_tracer
from transcoders.formats.crosslayer import clt_forge
from transcoders.formats.crosslayer import gemma_scope as cross_gemma_scope
from transcoders.formats.locate import Source, locate

Reader = Callable[[Source, torch.device | str], Dictionary]
READERS: dict[str, Reader] = {
    "params.npz": gemma_scope.read_first,
    "params.safetensors": gemma_scope.read_second,
    saelens.WEIGHTS: saelens.read,
    sparsify.WEIGHTS: sparsify.read,
}
"""The file that only this format has, and its reader."""
CROSS_LAYER: dict[str, Reader] = {
    f"{cross_gemma_scope.PREFIX}*.safetensors": cross_gemma_scope.read,
    f"{cross_circuit_tracer.ENCODERS}*.safetensors": cross_circuit_tracer.read,
    f"{cross_circuit_tracer.DECODERS}*.safetensors": cross_circuit_tracer.read,
    clt_forge.WEIGHTS: clt_forge.read,
}
"""The files that only these formats have, of which many make one cross-layer transcoder."""
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")


def load(reference: str | Path, device: torch.device | str = "cpu") -> Dictionary:
    """Load the transcoder at a local path, at a URL or at ``org/repo:folder`` on the Hub, ours or another tool's.

    What is not here is downloaded into the user's cache. Foreign ones of a layer keep the dtype of their file,
    cross-layer ones become float32; their units are raw.

    Raises:
        UserError: nothing is there, or nothing that is known; see the readers for the rest.
    """
    source = locate(str(reference))
    try:
        return _read(source, device)
    except UserError as error:
        if "://" not in source.name or str(error).startswith(source.name):
            raise
        raise UserError(f"{source.name}, downloaded to {error}") from None


def load_one_layer(reference: str | Path, device: torch.device | str = "cpu") -> Transcoder:
    """Load a transcoder where only one of a single layer is of use.

    Raises:
        UserError: it is a cross-layer one; and as ``load``.
    """
    model = load(reference, device)
    if isinstance(model, CrossLayerTranscoder):
        raise UserError(
            f"{reference}: is a cross-layer transcoder of {len(model.config.layers)} layers, where one of a single "
            "layer is needed"
        )
    return model


def _read(source: Source, device: torch.device | str) -> Dictionary:
    path = source.folder
    folder = path.parent if path.is_file() else path
    if files.is_cross_layer(folder):
        return files.load(folder, device)
    for pattern, read in CROSS_LAYER.items():
        if path.match(pattern) or (path.is_dir() and any(path.glob(pattern))):
            of_folder = str(Path(source.path).parent) if path.is_file() else source.path
            return read(source._replace(folder=folder, path=of_folder), device)
    if path.is_file():
        if path.suffix == ".safetensors" and (path.parent / circuit_tracer.CONFIG).is_file():
            return circuit_tracer.read(source, device)
        source = source._replace(folder=path.parent, path=str(Path(source.path).parent))
    elif (path / WEIGHTS).is_file():
        return Transcoder.load(path, device)
    for name, reader in READERS.items():
        if (source.folder / name).is_file() and path.name in (name, source.folder.name):
            return reader(source, device)
    raise UserError(_unknown(source))


def _unknown(source: Source) -> str:
    path = source.folder
    if not path.is_dir():
        return f"{source.name}: there is no such file or folder"
    if (path / circuit_tracer.CONFIG).is_file():
        file = min((file.name for file in path.glob("*.safetensors")), default="layer_0.safetensors")
        return f"{source.name}: is a set of many layers; name one of its files, such as {source.name}/{file}"
    names = sorted(entry.name for entry in path.iterdir())
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return f"{source.name}: holds only pickles ({pickles[0]}), which could run any code; ask for safetensors"
    return (
        f"{source.name}: holds {', '.join(names) or 'nothing'}; expected {WEIGHTS} (ours), "
        f"{', '.join((*READERS, *CROSS_LAYER))} or {circuit_tracer.CONFIG}"
    )
