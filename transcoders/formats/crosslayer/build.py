"""What the readers of cross-layer transcoders share: their files, the checks of their shapes, and reading by pieces.

Everything is looked at before anything is read, and no more than a piece of a file is in memory beside the transcoder.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from transcoders.core.errors import UserError
from transcoders.dictionary.crosslayer.config import CrossLayerConfig
from transcoders.dictionary.crosslayer.transcoder import CrossLayerTranscoder
from transcoders.dictionary.names import EncoderName
from transcoders.formats.weights import Shape, Weights


class Sizes(NamedTuple):
    """Hold the sizes of a cross-layer transcoder of a whole model."""

    layers: int
    d_hidden: int
    d_model: int


def sizes_of(weights: Weights, W_dec: str) -> Sizes:
    """Return what the decoder of the first layer says, which is [F, L, d].

    Raises:
        UserError: it is missing or has other dimensions.
    """
    shape = shape_of(weights, W_dec)
    if len(shape) != 3 or not all(shape):
        raise UserError(f"{weights.path}: {W_dec} is {list(shape)}, expected [latents, layers, d_model]")
    d_hidden, layers, d_model = shape
    return Sizes(layers, d_hidden, d_model)


def shape_of(weights: Weights, name: str) -> Shape:
    """Return the shape of a tensor.

    Raises:
        UserError: the file does not hold it.
    """
    if name not in weights.tensors:
        raise UserError(f"{weights.path}: lacks {name}; it holds {', '.join(sorted(weights.tensors)) or 'nothing'}")
    return weights.tensors[name].shape


def check(weights: Weights, shapes: Mapping[str, Shape]) -> None:
    """Make sure that a file holds tensors of these names and shapes, and no others.

    Raises:
        UserError: one is missing, unknown or of another shape.
    """
    for name, wanted in shapes.items():
        found = shape_of(weights, name)
        if found != wanted:
            raise UserError(
                f"{weights.path}: {name} is {list(found)}, expected {list(wanted)}; are all files of one transcoder?"
            )
    unknown = sorted(set(weights.tensors) - set(shapes))
    if unknown:
        raise UserError(f"{weights.path}: holds {', '.join(unknown)}, which this format does not know")


def numbered(folder: Path, prefix: str, layers: int | None = None) -> list[Path]:
    """Return the files ``<prefix><i>.safetensors`` of layers 0, 1, …; of ``layers``, where their number is known.

    Raises:
        UserError: a layer's is missing, or there are more.
    """
    names = re.compile(rf"{re.escape(prefix)}(\d+)\.safetensors")
    found = {int(match[1]): file for file in folder.iterdir() if (match := names.fullmatch(file.name))}
    last = max(found, default=0) if layers is None else layers - 1
    missing = next((layer for layer in range(last + 1) if layer not in found), None)
    if missing is not None:
        raise UserError(f"{folder / f'{prefix}{missing}.safetensors'}: is missing; layers 0 to {last} have one each")
    surplus = max(found)
    if surplus > last:
        raise UserError(
            f"{found[surplus]}: is of layer {surplus}, but the first layer's decoder writes to {layers} layers"
        )
    return [found[layer] for layer in range(last + 1)]


def empty(
    sizes: Sizes,
    encoder: EncoderName,
    skip: bool,
    provenance: Mapping[str, Any],
    device: torch.device | str,
) -> CrossLayerTranscoder:
    """Return a transcoder of layers 0 to ``sizes.layers - 1`` in raw units with zero weights, in float32."""
    scales = (1.0,) * sizes.layers
    try:
        config = CrossLayerConfig(
            layers=tuple(range(sizes.layers)),
            encoder=encoder,
            d_model=sizes.d_model,
            d_hidden=sizes.d_hidden,
            k=sizes.d_hidden,
            skip=skip,
            input_scales=scales,
            output_scales=scales,
            provenance=dict(provenance),
        )
    except ValidationError as error:
        raise UserError(f"{provenance['source']}: {' '.join(str(error).split())}") from None
    with torch.device(device):
        return CrossLayerTranscoder(config).requires_grad_(False)


def fill_(into: Tensor, weights: Weights, name: str, change: Callable[[Tensor], Tensor] = lambda piece: piece) -> None:
    """Copy a tensor of a file into ``into``, piece by piece, each as ``change`` returns it."""
    for rows, piece in weights.pieces(name):
        into[rows] = change(piece).to(into.device)


def by_first_axis(weights: Weights, name: str) -> Iterable[tuple[int, Tensor]]:
    """Yield the parts of a tensor along its first axis, with their places."""
    for rows, piece in weights.pieces(name):
        yield from enumerate(piece, rows.start)


def small(weights: Weights, names: Sequence[str]) -> list[Tensor]:
    """Return whole tensors, in float32."""
    return [torch.cat([piece.float() for _, piece in weights.pieces(name)]) for name in names]
