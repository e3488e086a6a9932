"""The activation store: one zarr v3 group per layer, in few large shards.

Arrays, all with the same rows (one row a token): ``mlp_in`` and ``mlp_out`` [tokens, d],
``token``, ``document``, ``position`` and ``context`` [tokens]. bfloat16 is kept as its bits
(uint16); the attribute ``dtype`` says so. ``complete: true`` is written last.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from zarr.errors import GroupNotFoundError

from transcoders.errors import DAMAGE, UserError

SCHEMA = 1
CHUNK_ROWS = 4096
SHARD_ROWS = 16 * CHUNK_ROWS
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
ACTIVATIONS = ("mlp_in", "mlp_out")
LABELS = ("token", "document", "position", "context")
REMEDY = "remove it and run `dvc repro collect`"


def create(path: Path, d_model: int, dtype: str, rows: int, attributes: dict[str, Any]) -> None:
    """Create an empty, incomplete store for at most ``rows`` tokens."""
    root = zarr.open_group(path, mode="w", zarr_format=3)
    shard_rows = SHARD_ROWS if rows > CHUNK_ROWS else CHUNK_ROWS
    bits = {"float16": "float16", "bfloat16": "uint16", "float32": "float32"}[dtype]
    for name in ACTIVATIONS:
        root.create_array(
            name,
            shape=(rows, d_model),
            chunks=(CHUNK_ROWS, d_model),
            shards=(shard_rows, d_model),
            dtype=bits,
            compressors=None,
        )
    for name in LABELS:
        # zarr leaves out chunks that hold only the fill value: no label is ever -1
        root.create_array(name, shape=(rows,), chunks=(shard_rows,), dtype="int32", compressors=None, fill_value=-1)
    root.attrs.update({**attributes, "dtype": dtype, "schema": SCHEMA, "complete": False})


def to_storage(values: Float[Tensor, "tokens d"], dtype: str, where: str) -> NDArray[Any]:
    """Convert activations to the stored dtype.

    Raises:
        UserError: NaN, infinity, or a value that ``dtype`` cannot hold.
    """
    if not torch.isfinite(values).all():
        raise UserError(
            f"collect: {where} holds NaN or infinity before it is stored; the model's forward pass "
            "is broken on this text or device (try device: cpu)"
        )
    stored = values.to(DTYPES[dtype])
    if not torch.isfinite(stored).all():
        raise UserError(
            f"collect.dtype: {where} reaches {values.abs().max():.3g}, more than {dtype} holds; "
            "use collect.dtype: bfloat16 or float32"
        )
    stored = stored.cpu()
    return (stored.view(torch.uint16) if dtype == "bfloat16" else stored).numpy()


def finish(path: Path, rows: int, attributes: dict[str, Any]) -> None:
    """Cut the arrays to ``rows`` and mark the store complete."""
    root = zarr.open_group(path, mode="r+")
    for name in (*ACTIVATIONS, *LABELS):
        array = root[name]
        assert isinstance(array, zarr.Array)
        array.resize((rows, *array.shape[1:]))
    root.attrs.update({**attributes, "tokens": rows})
    # The flag goes last and by rename: a store that was cut off before this line is incomplete.
    file = path / "zarr.json"
    content = json.loads(file.read_text())
    content["attributes"]["complete"] = True
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2))
    os.replace(temporary, file)


class Store:
    """A complete store, opened for reading."""

    def __init__(self, path: Path) -> None:
        """Open the store at ``path``.

        Raises:
            UserError: it is missing, unfinished, of another kind, or truncated.
        """
        self.path = path
        try:
            root = zarr.open_group(path, mode="r")
            missing = [name for name in (*ACTIVATIONS, *LABELS) if name not in root]
        except (GroupNotFoundError, FileNotFoundError):
            raise UserError(f"{path}: there is no activation store; run `dvc repro collect`") from None
        except DAMAGE as error:
            raise UserError(f"{path}: not a readable zarr group ({' '.join(str(error).split())}); {REMEDY}") from error
        self.attributes: dict[str, Any] = dict(root.attrs)
        if self.attributes.get("schema") != SCHEMA or missing:
            raise UserError(
                f"{path}: a zarr group, but not an activation store of schema {SCHEMA} "
                f"(schema {self.attributes.get('schema')}, missing arrays: {missing}); {REMEDY}"
            )
        if not self.attributes.get("complete"):
            raise UserError(f"{path}: the activation store is unfinished; run `dvc repro collect`")
        self._root = root
        try:
            self.tokens = int(self.attributes["tokens"])
            self.d_model = int(self.attributes["d_model"])
            self._check_shards()
        except DAMAGE as error:
            raise UserError(f"{path}: damaged ({' '.join(str(error).split())}); {REMEDY}") from error

    @staticmethod
    def is_complete(path: Path) -> bool:
        """Whether a finished store lies at ``path``."""
        file = path / "zarr.json"
        try:
            return file.is_file() and bool(json.loads(file.read_text())["attributes"].get("complete"))
        except (ValueError, KeyError, TypeError, AttributeError):
            return False  # damaged: collect writes it anew

    def _array(self, name: str) -> "zarr.Array[Any]":
        array = self._root[name]
        assert isinstance(array, zarr.Array)
        return array

    def _check_shards(self) -> None:
        """An absent zarr chunk reads as zeros, so absence and truncation must be looked for."""
        for name in (*ACTIVATIONS, *LABELS):
            array = self._array(name)
            step = (array.shards or array.chunks)[0]
            expected = (self.tokens, self.d_model) if name in ACTIVATIONS else (self.tokens,)
            if array.shape != expected:
                raise UserError(f"{self.path}: {name} is {list(array.shape)}, expected {list(expected)}; {REMEDY}")
            for index in range(-(-self.tokens // step)):
                file = self.path / name / "c" / "/".join([str(index)] + ["0"] * (array.ndim - 1))
                row_bytes = array.dtype.itemsize * int(np.prod(array.shape[1:]))
                rows = min(step, self.tokens - index * step)
                if not file.is_file() or file.stat().st_size < rows * row_bytes:
                    raise UserError(f"{self.path}: {name} is truncated at shard {index}; {REMEDY}")

    def labels(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.int32]:
        """``token``, ``document``, ``position`` or ``context`` of rows [start, stop)."""
        return self._read(name, start, stop)

    def rows(self, name: str, start: int, stop: int) -> Float[Tensor, "tokens d"]:
        """``mlp_in`` or ``mlp_out`` of rows [start, stop), in the stored dtype."""
        values = torch.from_numpy(self._read(name, start, stop))
        return values.view(torch.bfloat16) if values.dtype == torch.uint16 else values

    def _read(self, name: str, start: int, stop: int | None) -> NDArray[Any]:
        try:
            return np.asarray(self._array(name)[start:stop])
        except DAMAGE as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.path}: {name} is damaged ({reason}); {REMEDY}") from error
