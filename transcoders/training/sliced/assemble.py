"""One safetensors file of a sliced dictionary, written by one rank without ever holding all of it."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from transcoders.core.files import replacing
from transcoders.dictionary.config import PER_LATENT
from transcoders.dictionary.crosslayer import files
from transcoders.dictionary.crosslayer.transcoder import CrossLayerTranscoder
from transcoders.dictionary.dictionary import Dictionary
from transcoders.dictionary.transcoder import WEIGHTS, write_config
from transcoders.distributed.ranks import Team
from transcoders.training.sliced.transcoder import SlicedTranscoder, slices

DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}


def save_all_slices(model: Dictionary, here: SlicedTranscoder, folder: Path, *, first: bool) -> None:
    """Write what the dictionary's ``save`` writes, from the slices of all ranks of its team; ``first`` writes.

    All latents of ``model`` are divided as those of ``here`` are.
    """
    if isinstance(model, CrossLayerTranscoder):
        of_files = {model.config.file(n): model.tensors(n) for n in range(len(model.sources))}
    else:
        of_files = {WEIGHTS: {name: value.detach() for name, value in model.state_dict().items()}}
    for file, tensors in of_files.items():
        owners = {name: here for name in tensors if name in PER_LATENT}
        write_slice_by_slice(folder / file if first else None, tensors, owners, here.team)
    if first and isinstance(model, CrossLayerTranscoder):
        sizes = {name: getattr(here.full_config, name) for name in ("d_hidden", "prefixes")}
        files.write_config(folder, model.config.model_copy(update=sizes))
    elif first:
        write_config(folder, here.full_config)


def write_slice_by_slice(
    path: Path | None,
    tensors: dict[str, Tensor],
    owners: dict[str, SlicedTranscoder],
    team: Team,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write ``tensors`` to ``path`` on rank 0; the other ranks send their rows of those that have ``owners``.

    An owner says which of all latents a tensor's rows are. A tensor without an owner is that of rank 0.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # as safetensors orders them
    shapes = {name: _shape(tensors[name], owners.get(name)) for name in names}
    with ExitStack() as stack:
        file = None
        if path is not None:
            file = stack.enter_context(stack.enter_context(replacing(path)).open("wb"))
            file.write(_header(tensors, shapes, metadata))
        for name in names:
            for piece in _pieces(tensors[name], owners.get(name), team):
                if file is not None:
                    file.write(piece.cpu().contiguous().numpy().data)


def _shape(tensor: Tensor, owner: SlicedTranscoder | None) -> list[int]:
    return list(tensor.shape) if owner is None else [owner.full_config.d_hidden, *tensor.shape[1:]]


def _header(tensors: dict[str, Tensor], shapes: dict[str, list[int]], metadata: dict[str, str] | None) -> bytes:
    sizes = [tensors[name].element_size() * int(torch.tensor(shape).prod()) for name, shape in shapes.items()]
    content: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    for (name, shape), offsets in zip(shapes.items(), pairwise(accumulate(sizes, initial=0)), strict=True):
        content[name] = {"dtype": DTYPES[tensors[name].dtype], "shape": shape, "data_offsets": list(offsets)}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _pieces(tensor: Tensor, owner: SlicedTranscoder | None, team: Team) -> Iterator[Tensor]:
    """Yield the rows in the order of all latents; what rank 0 does not hold is sent to it, one slice at a time."""
    if owner is None:
        yield tensor
        return
    local = list(tensor.split([stop - start for start, stop in slices(owner.full_config, team.rank, team.size)]))
    of_rank = [slices(owner.full_config, rank, team.size) for rank in range(team.size)]
    for number in range(len(local)):
        for rank in range(team.size):
            start, stop = of_rank[rank][number]
            piece = local[number] if rank == team.rank else tensor.new_empty(0)
            if team.rank == 0 and rank != 0:
                piece = tensor.new_empty(stop - start, *tensor.shape[1:])
            yield team.send_to_first(piece, rank)
