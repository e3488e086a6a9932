"""A file of tensors, looked at before it is read, and read a piece at a time.

Nothing here unpickles: npz members are parsed by numpy's header reader, never by ``pickle``.
"""

import math
import zipfile
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from transcoders.core.errors import DAMAGE, UserError

DOWNLOAD = "delete it and download it again"
PIECE_BYTES = 16 << 20
Shape = tuple[int, ...]
BROKEN = (*DAMAGE, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What reading a broken zip file raises."""
MOST_DEFLATED = 1032
"""Deflate makes nothing smaller than by this factor."""


class TensorHeader(NamedTuple):
    """Hold what a file says of a tensor before it is read."""

    shape: Shape
    dtype: torch.dtype


class Weights(Protocol):
    """Open a file of named tensors."""

    path: Path
    tensors: dict[str, TensorHeader]

    def pieces(self, name: str) -> Iterable[tuple[slice, Tensor]]:
        """Yield consecutive rows of a tensor, and where they go; only one piece is in memory."""


def open_weights(path: Path, ignored: Collection[str] = ()) -> Weights:
    """Look into a ``.safetensors`` or ``.npz`` file; of the first, the tensors ``ignored`` are not looked at.

    Raises:
        UserError: it is truncated, not of this kind, or holds pickles.
    """
    with path.open("rb") as file:
        start = file.read(9)
    is_header = start[8:] == b"{"  # safetensors: eight bytes of length, then JSON
    if not is_header and (start[:1] == b"\x80" or (start[:2] == b"PK" and path.suffix != ".npz")):
        raise UserError(f"{path}: is a pickle, which could run any code, and is not opened; ask for safetensors")
    return Npz(path) if path.suffix == ".npz" else SafeTensors(path, ignored)


class SafeTensors:
    """Open a safetensors file, anew for each piece: a mapping left open keeps all pages it touched."""

    def __init__(self, path: Path, ignored: Collection[str] = ()) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if name not in ignored]  # noqa: SIM118 — not a dict
                slices = {name: file.get_slice(name) for name in names}
                self.tensors = {
                    n: TensorHeader(tuple(s.get_shape()), _dtype(s.get_dtype(), path)) for n, s in slices.items()
                }
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not whole safetensors ({error}); {DOWNLOAD}") from None

    def pieces(self, name: str) -> Iterable[tuple[slice, Tensor]]:
        """See ``Weights``."""
        shape, dtype = self.tensors[name]
        row = dtype.itemsize * int(np.prod(shape[1:]))
        step = max(1, PIECE_BYTES // max(1, row))
        for start in range(0, shape[0], step):
            rows = slice(start, min(start + step, shape[0]))
            with safe_open(self.path, framework="pt") as file:
                yield rows, file.get_slice(name)[rows]


def _dtype(name: str, path: Path) -> torch.dtype:
    known = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if name not in known:
        raise UserError(f"{path}: holds numbers of type {name}; expected one of {', '.join(known)}")
    return known[name]


class Npz:
    """Open a zip of ``.npy`` files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = {}
        try:
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    self.tensors[member.removesuffix(".npy")] = self._header(archive, member)
        except BROKEN as error:
            raise UserError(f"{path}: not a whole npz file ({error}); {DOWNLOAD}") from None

    def _header(self, archive: zipfile.ZipFile, member: str) -> TensorHeader:
        with archive.open(member) as file:
            if not member.endswith(".npy"):
                raise UserError(f"{self.path}: holds {member}, not only arrays, and is not opened; ask for safetensors")
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        if dtype.hasobject:
            raise UserError(f"{self.path}: {member} holds pickled objects and is not opened; ask for safetensors")
        if dtype not in (np.float64, np.float32, np.float16):
            raise UserError(f"{self.path}: {member} holds numbers of type {dtype}; expected floating point")
        held = archive.getinfo(member)
        claimed = math.prod(shape) * dtype.itemsize
        if min(shape, default=1) < 0 or claimed > min(held.file_size, MOST_DEFLATED * held.compress_size):
            raise ValueError(f"{member} claims {list(shape)} numbers, which it has no room for")
        return TensorHeader(shape, getattr(torch, str(dtype)))

    def pieces(self, name: str) -> Iterable[tuple[slice, Tensor]]:
        """See ``Weights``; here a tensor is one piece."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
        except BROKEN as error:
            raise UserError(
                f"{self.path}: {name} is damaged ({error}); delete the file and download it again"
            ) from None
        yield slice(0, len(array)), torch.from_numpy(array)
