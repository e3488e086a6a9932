"""The activation store: one zarr v3 group per layer, in few large shards.

Arrays, all with the same rows (one row a token): ``mlp_in`` and ``mlp_out`` [tokens, d],
``token``, ``document``, ``position`` and ``context`` [tokens]. bfloat16 is kept as its bits
(uint16); the attribute ``dtype`` says so. int8 has ``mlp_in_scale`` and ``mlp_out_scale`` [tokens]
beside it. With the attribute ``outputs: recomputed`` there is no ``mlp_out``. ``complete: true`` is
written last.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from zarr.codecs import BloscCodec, ZstdCodec
from zarr.errors import GroupNotFoundError

from transcoders.errors import UserError

SCHEMA = 1
CHUNK_ROWS = 4096
SHARD_ROWS = 16 * CHUNK_ROWS
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
BITS = {"float16": "float16", "bfloat16": "uint16", "float32": "float32", "int8": "int8"}
CODECS = {None: None, "zstd": ZstdCodec(level=1), "blosc-lz4": BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle")}
ACTIVATIONS = ("mlp_in", "mlp_out")
SCALE = "_scale"
LABELS = ("token", "document", "position", "context")


def array_names(dtype: str, outputs: str) -> list[str]:
    """The arrays of a store."""
    held = ACTIVATIONS if outputs == "stored" else ACTIVATIONS[:1]
    return [*held, *(name + SCALE for name in held if dtype == "int8"), *LABELS]


def bytes_per_token(d_model: int, dtype: str, outputs: str) -> int:
    """Of x and y, without a codec."""
    row = d_model * np.dtype(BITS[dtype]).itemsize + (4 if dtype == "int8" else 0)
    return 2 * row if outputs == "stored" else row


def create(
    path: Path, d_model: int, dtype: str, rows: int, attributes: dict[str, Any],
    *, codec: str | None = None, outputs: str = "stored",
) -> None:  # fmt: skip
    """Create an empty, incomplete store for at most ``rows`` tokens."""
    root = zarr.open_group(path, mode="w", zarr_format=3)
    shard_rows = SHARD_ROWS if rows > CHUNK_ROWS else CHUNK_ROWS
    # zarr leaves out chunks that hold only the fill value: no label and no scale is ever -1
    for name in array_names(dtype, outputs):
        if name in LABELS:
            root.create_array(name, shape=(rows,), chunks=(shard_rows,), dtype="int32", compressors=None, fill_value=-1)
        elif name.endswith(SCALE):
            root.create_array(
                name, shape=(rows,), chunks=(CHUNK_ROWS,), shards=(shard_rows,), dtype="float32", compressors=None,
                fill_value=-1,
            )  # fmt: skip
        else:
            root.create_array(
                name, shape=(rows, d_model), chunks=(CHUNK_ROWS, d_model), shards=(shard_rows, d_model),
                dtype=BITS[dtype], compressors=CODECS[codec],
            )  # fmt: skip
    if outputs == "recomputed":
        attributes = {**attributes, "outputs": outputs}
    root.attrs.update({**attributes, "dtype": dtype, "schema": SCHEMA, "complete": False})


def to_storage(name: str, values: Float[Tensor, "tokens d"], dtype: str, where: str) -> dict[str, NDArray[Any]]:
    """Array ``name`` as it is stored: in ``dtype``; for int8, rounded to steps of max |row| / 127, and these steps.

    Raises:
        UserError: NaN, infinity, or a value that ``dtype`` cannot hold.
    """
    if not torch.isfinite(values).all():
        raise UserError(
            f"collect: {name} of {where} holds NaN or infinity before it is stored; the model's forward pass "
            "is broken on this text or device (try device: cpu)"
        )
    if dtype == "int8":
        scale = values.float().abs().amax(1) / 127
        steps = values / scale.where(scale > 0, 1.0)[:, None]
        rounded = steps.round().clamp(-127, 127).to(torch.int8)
        return {name: rounded.cpu().numpy(), name + SCALE: scale.cpu().numpy()}
    stored = values.to(DTYPES[dtype])
    if not torch.isfinite(stored).all():
        raise UserError(
            f"collect.dtype: {name} of {where} reaches {values.abs().max():.3g}, more than {dtype} holds; "
            "use collect.dtype: bfloat16 or float32"
        )
    stored = stored.cpu()
    return {name: (stored.view(torch.uint16) if dtype == "bfloat16" else stored).numpy()}


def from_storage(name: str, arrays: Mapping[str, NDArray[Any]]) -> Float[Tensor, "tokens d"]:
    """What ``to_storage`` was given, rounded: in the stored dtype, of int8 in float32."""
    values = torch.from_numpy(arrays[name])
    if values.dtype == torch.int8:
        return values.float() * torch.from_numpy(arrays[name + SCALE])[:, None]
    return values.view(torch.bfloat16) if values.dtype == torch.uint16 else values


def finish(path: Path, rows: int, attributes: dict[str, Any]) -> None:
    """Cut the arrays to ``rows`` and mark the store complete."""
    root = zarr.open_group(path, mode="r+")
    compressed: dict[str, int] = {}
    for name, array in sorted(root.arrays()):
        array.resize((rows, *array.shape[1:]))
        if array.compressors:
            compressed[name] = array.nbytes_stored()
    # Uncompressed sizes follow from the shape; these must be kept to find a truncated shard.
    sizes = {"compressed_bytes": compressed} if compressed else {}
    root.attrs.update({**attributes, **sizes, "tokens": rows})
    # The flag goes last and by rename: a store that was cut off before this line is incomplete.
    file = path / "zarr.json"
    content = json.loads(file.read_text())
    content["attributes"]["complete"] = True
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2))
    os.replace(temporary, file)


class Store:
    """A complete store, opened for reading."""

    mlp: Callable[[Tensor], Tensor] | None = None
    """Maps x to y where y is not stored; `recompute.open_store` sets it."""

    def __init__(self, path: Path) -> None:
        """Open the store at ``path``.

        Raises:
            UserError: it is missing, unfinished, of another kind, or truncated.
        """
        self.path = path
        remedy = "remove it and run `dvc repro collect`"
        try:
            root = zarr.open_group(path, mode="r")
        except (GroupNotFoundError, FileNotFoundError):
            raise UserError(f"{path}: there is no activation store; run `dvc repro collect`") from None
        except (ValueError, KeyError, OSError) as error:
            raise UserError(f"{path}: not a readable zarr group ({error}); {remedy}") from error
        self.attributes: dict[str, Any] = dict(root.attrs)
        self._names = array_names(self.attributes.get("dtype", ""), self.attributes.get("outputs", "stored"))
        self.held = tuple(name for name in ACTIVATIONS if name in self._names)
        missing = [name for name in self._names if name not in root]
        if self.attributes.get("schema") != SCHEMA or missing:
            raise UserError(
                f"{path}: a zarr group, but not an activation store of schema {SCHEMA} "
                f"(schema {self.attributes.get('schema')}, missing arrays: {missing}); {remedy}"
            )
        if not self.attributes["complete"]:
            raise UserError(f"{path}: the activation store is unfinished; run `dvc repro collect`")
        self._root = root
        self.tokens = int(self.attributes["tokens"])
        self.d_model = int(self.attributes["d_model"])
        self._check_shards(remedy)

    @staticmethod
    def is_complete(path: Path) -> bool:
        """Whether a finished store lies at ``path``."""
        file = path / "zarr.json"
        return file.is_file() and bool(json.loads(file.read_text())["attributes"].get("complete"))

    def _array(self, name: str) -> "zarr.Array[Any]":
        array = self._root[name]
        assert isinstance(array, zarr.Array)
        return array

    def _check_shards(self, remedy: str) -> None:
        """An absent zarr chunk reads as zeros, so absence and truncation must be looked for."""
        for name in self._names:
            array = self._array(name)
            step = (array.shards or array.chunks)[0]
            if array.shape[0] != self.tokens:
                raise UserError(f"{self.path}: {name} has {array.shape[0]} rows, not {self.tokens}; {remedy}")
            for index in range(-(-self.tokens // step)):
                file = self.path / name / "c" / "/".join([str(index)] + ["0"] * (array.ndim - 1))
                row_bytes = array.dtype.itemsize * int(np.prod(array.shape[1:]))
                rows = min(step, self.tokens - index * step)
                least = 1 if array.compressors else rows * row_bytes
                if not file.is_file() or file.stat().st_size < least:
                    raise UserError(f"{self.path}: {name} is truncated at shard {index}; {remedy}")
            if array.compressors and array.nbytes_stored() != self.attributes["compressed_bytes"][name]:
                raise UserError(f"{self.path}: {name} is truncated or was changed; {remedy}")

    def labels(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.int32]:
        """``token``, ``document``, ``position`` or ``context`` of rows [start, stop)."""
        return np.asarray(self._array(name)[start:stop])

    def rows(self, name: str, start: int, stop: int) -> Float[Tensor, "tokens d"]:
        """``mlp_in`` or ``mlp_out`` of rows [start, stop), in the stored dtype; float32 of int8 and recomputed ones."""
        if name not in self.held:
            return self.recompute(self.rows("mlp_in", start, stop))
        parts = [part for part in (name, name + SCALE) if part in self._names]
        return from_storage(name, {part: np.asarray(self._array(part)[start:stop]) for part in parts})

    def recompute(self, x: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens d"]:
        """The y of ``x``, float32, on x's device, by the model's own MLP.

        Raises:
            UserError: the store was opened without it.
        """
        if self.mlp is None:
            raise UserError(
                f"{self.path}: holds x alone (collect.outputs: recomputed), and y needs the model's MLP; open it with "
                "transcoders.activations.recompute.open_store, or collect with collect.outputs: stored"
            )
        return self.mlp(x.float())
