"""From tensors under other names, maybe transposed, to a ``Transcoder``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from transcoders.core.errors import UserError
from transcoders.core.settings import SHORT
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.names import EncoderName
from transcoders.dictionary.transcoder import Transcoder
from transcoders.formats.weights import Shape, Weights


class Placement(NamedTuple):
    """Name one of our tensors as a file does, and say whether it lies there transposed."""

    name: str
    transposed: bool = False


Layout = Mapping[str, Placement]
"""Our name of every tensor -> its place in the file."""


def layout(**names: str) -> Layout:
    """Return where our tensors are in a file, given their names there; ``name.T`` says that one is transposed."""
    return {ours: Placement(name.removesuffix(".T"), name.endswith(".T")) for ours, name in names.items()}


def build(
    weights: Weights,
    layout: Layout,
    encoder: EncoderName,
    k: int | None,
    provenance: Mapping[str, Any],
    device: torch.device | str = "cpu",
) -> Transcoder:
    """Read the tensors of ``layout`` in the dtype that they are stored in.

    ``k`` is what each token has active, or None where the file tells none: then it is all latents.

    Raises:
        UserError: a tensor is missing, unknown, transposed or of a wrong shape.
    """
    _check_names(weights, layout)
    shapes = {name: weights.tensors[placement.name].shape for name, placement in layout.items()}
    for name in ("b_enc", "b_dec"):
        if len(shapes[name]) != 1:
            raise UserError(f"{weights.path}: {layout[name].name} is {list(shapes[name])}, expected one dimension")
    dtypes = {weights.tensors[placement.name].dtype for placement in layout.values()}
    if torch.float64 in dtypes and len(dtypes) > 1:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise UserError(
            f"{weights.path}: holds tensors of {names} side by side; save all of them in one of these types"
        )
    d_in = _d_in(weights, layout, shapes)
    try:
        config = TranscoderConfig(
            encoder=encoder,
            d_in=d_in,
            d_out=shapes["b_dec"][0],
            d_hidden=shapes["b_enc"][0],
            k=shapes["b_enc"][0] if k is None else k,
            skip="W_skip" in layout,
            provenance=dict(provenance),
        )
    except ValidationError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{weights.path}: sizes that no transcoder has ({reason})") from None
    with torch.device("meta"):
        model = Transcoder(config)
    for name, parameter in model.named_parameters():
        _check_shape(weights, layout[name], tuple(parameter.shape))
    state = {name: _read(weights, layout[name], tuple(p.shape), device) for name, p in model.named_parameters()}
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False)


def check_settings(file: Path, settings: Mapping[str, Any], harmless: str, fixed: Mapping[str, Any]) -> None:
    """Refuse a setting of another tool's ``file`` that changes what a transcoder computes, or may.

    ``harmless`` names those that do not, or that the reader looks at itself; ``fixed`` gives the values that others
    must have where they are there.

    Raises:
        UserError: a setting of ``fixed`` has another value, or one is in neither.
    """
    for key, value in fixed.items():
        if settings.get(key, value) != value:
            raise UserError(
                f"{file}: {key} is {SHORT.repr(settings[key])}, expected {value!r}; fold it into the weights"
            )
    unknown = sorted(set(map(str, settings)) - set(harmless.split()) - set(fixed))
    if unknown:
        raise UserError(
            f"{file}: {SHORT.repr(unknown[0])} is no setting that is known here, and may change what the transcoder "
            "computes; remove it if it does not"
        )


def check_sizes(file: Path, settings: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Refuse ``settings`` from ``file`` that contradict the ``sizes`` of the tensors beside it.

    Raises:
        UserError: one is missing or another.
    """
    for key, size in sizes.items():
        if settings.get(key) != size:
            claimed = SHORT.repr(settings.get(key))
            raise UserError(f"{file}: says {key} = {claimed}, but the tensors have {size}; which is it?")


def _check_names(weights: Weights, layout: Layout) -> None:
    expected = {placement.name for placement in layout.values()}
    missing, unknown = sorted(expected - set(weights.tensors)), sorted(set(weights.tensors) - expected)
    if missing or unknown:
        problems = "; ".join(
            f"{what} {', '.join(names)}" for what, names in (("lacks", missing), ("does not know", unknown)) if names
        )
        raise UserError(
            f"{weights.path}: this format {problems.replace('lacks', 'needs')}; the file holds "
            f"{', '.join(sorted(weights.tensors))}; is it a transcoder of another kind?"
        )


def _d_in(weights: Weights, layout: Layout, shapes: Mapping[str, Shape]) -> int:
    """Return the size of W_enc's other side than its latents."""
    shape, d_hidden = shapes["W_enc"], shapes["b_enc"][0]
    if len(shape) != 2 or d_hidden not in shape:
        raise UserError(
            f"{weights.path}: {layout['W_enc'].name} is {list(shape)}, which does not fit the "
            f"{d_hidden} latents of {layout['b_enc'].name}"
        )
    ours = shape[::-1] if layout["W_enc"].transposed else shape
    return ours[1] if ours[0] == d_hidden else ours[0]


def _check_shape(weights: Weights, placement: Placement, ours: Shape) -> None:
    stored_shape = weights.tensors[placement.name].shape
    wanted = ours[::-1] if placement.transposed else ours
    if stored_shape == wanted:
        return
    remedy = "are these tensors of one transcoder?"
    if stored_shape == wanted[::-1]:
        remedy = f"it is transposed: save {placement.name}.T in its place"
    raise UserError(f"{weights.path}: {placement.name} is {list(stored_shape)}, expected {list(wanted)}; {remedy}")


def _read(weights: Weights, placement: Placement, shape: Shape, device: torch.device | str) -> Tensor:
    result = torch.empty(shape, dtype=weights.tensors[placement.name].dtype, device=device)
    into = result.T if placement.transposed else result
    for rows, piece in weights.pieces(placement.name):
        into[rows] = piece.to(device)
    return result
