"""The activation store: one zarr v3 group per layer, in few large shards.

Arrays, all with the same rows (one row a token): ``mlp_in`` and ``mlp_out`` [tokens, d],
``token``, ``document``, ``position`` and ``context`` [tokens]. bfloat16 is kept as its bits
(uint16); the attribute ``dtype`` says so. int8 has ``mlp_in_scale`` and ``mlp_out_scale`` [tokens]
beside it. With the attribute ``outputs: recomputed`` there is no ``mlp_out``. ``complete: true`` is
written last.

A store lies in a folder or at a URL. A folder with ``remote.json`` alone stands for the store at the URL
that is in there, as long as that is the very store which it was written for.
"""

import hashlib
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
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.errors import GroupNotFoundError

from transcoders.core.errors import DAMAGE, UserError
from transcoders.core.files import cache_folder, fingerprint, write_json
from transcoders.core.places import Place, explain_errors, place, read_bytes, redacted, sizes, zarr_store

SCHEMA = 2
CHUNK_ROWS = 4096
SHARD_ROWS = 16 * CHUNK_ROWS
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
BITS = {"float16": "float16", "bfloat16": "uint16", "float32": "float32", "int8": "int8"}
CHECKSUM = Crc32cCodec()
"""Of every chunk: a flipped bit is an error, where it would be read as another number."""
CODECS: dict[str | None, list[Any]] = {
    None: [CHECKSUM],
    "zstd": [ZstdCodec(level=1), CHECKSUM],
    "blosc-lz4": [BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle"), CHECKSUM],
}
ACTIVATIONS = ("mlp_in", "mlp_out")
SCALE = "_scale"
NORM = "_norm"
LABELS = ("token", "document", "position", "context")
POINTER = "remote.json"


def array_names(dtype: str, outputs: str, *, norms: bool = False) -> list[str]:
    """Return the names of a store's arrays."""
    held = ACTIVATIONS if outputs == "stored" else ACTIVATIONS[:1]
    of_rows = [name + NORM for name in ACTIVATIONS if norms]
    return [*held, *(name + SCALE for name in held if dtype == "int8"), *of_rows, *LABELS]


def bytes_per_token(d_model: int, dtype: str, outputs: str) -> int:
    """Return the bytes of a token's x and y, without a codec."""
    row = d_model * np.dtype(BITS[dtype]).itemsize + (4 if dtype == "int8" else 0)
    return 2 * row if outputs == "stored" else row


def create(
    path: Place,
    d_model: int,
    dtype: str,
    rows: int,
    attributes: dict[str, Any],
    *,
    codec: str | None = None,
    outputs: str = "stored",
    norms: bool = False,
) -> None:
    """Create an empty, incomplete store for at most ``rows`` tokens."""
    with explain_errors(path):
        root = zarr.open_group(zarr_store(path), mode="w", zarr_format=3)
        shard_rows = SHARD_ROWS if rows > CHUNK_ROWS else CHUNK_ROWS
        # zarr leaves out chunks that hold only the fill value: no label and no scale is ever -1
        for name in array_names(dtype, outputs, norms=norms):
            if name in LABELS:
                root.create_array(
                    name, shape=(rows,), chunks=(shard_rows,), dtype="int32", compressors=[CHECKSUM], fill_value=-1
                )
            elif name.endswith((SCALE, NORM)):
                root.create_array(
                    name,
                    shape=(rows,),
                    chunks=(CHUNK_ROWS,),
                    shards=(shard_rows,),
                    dtype="float32",
                    compressors=[CHECKSUM],
                    fill_value=-1,
                )
            else:
                root.create_array(
                    name,
                    shape=(rows, d_model),
                    chunks=(CHUNK_ROWS, d_model),
                    shards=(shard_rows, d_model),
                    dtype=BITS[dtype],
                    compressors=CODECS[codec],
                )
        if outputs == "recomputed":
            attributes = {**attributes, "outputs": outputs}
        if norms:
            attributes = {**attributes, "norms": True}
        root.attrs.update({**attributes, "dtype": dtype, "schema": SCHEMA, "complete": False})


def to_storage(name: str, values: Float[Tensor, "tokens d"], dtype: str, where: str) -> dict[str, NDArray[Any]]:
    """Return array ``name`` as it is stored: in ``dtype``; int8 as steps of max |row| / 127, and beside it these steps.

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
    """Return what ``to_storage`` was given, rounded: in the stored dtype, of int8 in float32."""
    values = torch.from_numpy(arrays[name])
    if values.dtype == torch.int8:
        return values.float() * torch.from_numpy(arrays[name + SCALE])[:, None]
    return values.view(torch.bfloat16) if values.dtype == torch.uint16 else values


def finish(path: Place, rows: int, attributes: dict[str, Any]) -> None:
    """Cut the arrays to ``rows`` and mark the store complete."""
    root = opened(path)
    with explain_errors(path):
        names = _names(root.attrs)
        for name in names:
            array = root[name]
            assert isinstance(array, zarr.Array)
            array.resize((rows, *array.shape[1:]))
        file_sizes = sizes(path)
        stored = {name: _stored(name, file_sizes) for name in names}
        # Last, and in one piece (zarr renames files): a store that was cut off before this line is incomplete.
        root.attrs.update({**attributes, "stored_bytes": stored, "tokens": rows, "complete": True})


def _names(attributes: Mapping[str, Any]) -> list[str]:
    norms = bool(attributes.get("norms"))
    return array_names(attributes.get("dtype", ""), attributes.get("outputs", "stored"), norms=norms)


def _stored(name: str, file_sizes: Mapping[str, int]) -> int:
    return sum(size for file, size in file_sizes.items() if file.startswith(f"{name}/c/"))


def content_files(path: Path) -> list[str]:
    """Return the files of the finished store at ``path``, by what its arrays call for: nothing else belongs to it."""
    root = zarr.open_group(path, mode="r")
    files = ["zarr.json"]
    for name in _names(root.attrs):
        array = root[name]
        assert isinstance(array, zarr.Array)
        pieces = array.shards or array.chunks
        counts = [-(-length // size) for length, size in zip(array.shape, pieces, strict=True)]
        files.append(f"{name}/zarr.json")
        files += ["/".join([name, "c", *map(str, index)]) for index in np.ndindex(*counts)]
    return files


def opened(path: Place) -> zarr.Group:
    """Open the unfinished store at ``path`` for writing."""
    with explain_errors(path):
        return zarr.open_group(zarr_store(path), mode="r+")


def is_begun(path: Place) -> bool:
    """Say whether a store, finished or not, lies at ``path``."""
    return read_bytes(path, "zarr.json") is not None


def notes_folder(path: Place) -> Path:
    """Return the local folder of what an unfinished store is continued from: the store's, or one in the cache."""
    return path if isinstance(path, Path) else cache_folder("collect") / fingerprint(path) / "store.zarr"


def digest(path: Place) -> str:
    """Return a hash of a store's metadata: shapes, codecs, provenance and the statistics of what it holds."""
    root = read_bytes(path, "zarr.json") or b'{"attributes": {}}'
    parts = [root, *(read_bytes(path, f"{name}/zarr.json") for name in _names(json.loads(root)["attributes"]))]
    return hashlib.sha256(b"".join(part or b"" for part in parts)).hexdigest()


def point(folder: Path, url: Place) -> None:
    """Make ``folder`` stand for the complete store at ``url``."""
    write_json(folder / POINTER, {"url": str(url), "sha256": digest(url)})


class Store:
    """Read a complete store."""

    mlp: Callable[[Tensor], Tensor] | None = None
    """Maps x to y where y is not stored; `recompute.open_store` sets it."""

    def __init__(self, path: Place) -> None:
        """Open the store at ``path``, or the one that the folder there points to.

        Raises:
            UserError: it is missing, unfinished, of another kind, truncated, or not the one pointed to.
        """
        self._place = place(path)
        pointer = read_bytes(self._place, POINTER) if isinstance(self._place, Path) else None
        if pointer is not None:
            self._place = _target(path, pointer)
        here = isinstance(self._place, Path)
        path = self.path = self._place if isinstance(self._place, Path) else redacted(self._place)
        self.requests = min(8, -(-(os.cpu_count() or 1) // 4)) if here else 16
        """Reads that gain from being made at a time: at a URL most of each is waiting for the answer."""
        self._remedy = f"remove it and run `dvc repro {'' if here else '--force '}collect`"
        try:
            with explain_errors(self._place):
                root = zarr.open_group(zarr_store(self._place, read_only=True), mode="r")
        except (GroupNotFoundError, FileNotFoundError):
            raise UserError(f"{path}: there is no activation store; run `dvc repro collect`") from None
        except DAMAGE as error:
            raise self._damaged("not a readable zarr group", error) from error
        self.attributes: dict[str, Any] = dict(root.attrs)
        self._names = _names(self.attributes)
        self.held = tuple(name for name in ACTIVATIONS if name in self._names)
        file_sizes = sizes(self._place)
        missing = [name for name in self._names if f"{name}/zarr.json" not in file_sizes]
        if self.attributes.get("schema") != SCHEMA or missing:
            raise UserError(
                f"{path}: a zarr group, but not an activation store of schema {SCHEMA} "
                f"(schema {self.attributes.get('schema')}, missing arrays: {missing}); {self._remedy}"
            )
        if not self.attributes.get("complete"):
            raise UserError(f"{path}: the activation store is unfinished; run `dvc repro collect`")
        self._root = root
        self._arrays: dict[str, zarr.Array[Any]] = {}
        try:
            self.tokens = int(self.attributes["tokens"])
            self.d_model = int(self.attributes["d_model"])
            self.dtype = DTYPES.get(self.attributes["dtype"], torch.float32)
            """Of ``rows``."""
            self._check_shards(file_sizes)
        except DAMAGE as error:
            raise self._damaged("damaged", error) from error

    @staticmethod
    def is_complete(path: Place) -> bool:
        """Say whether a finished store lies at ``path``."""
        content = read_bytes(path, "zarr.json")
        try:
            return content is not None and bool(json.loads(content)["attributes"].get("complete"))
        except (ValueError, KeyError, TypeError, AttributeError):
            return False  # damaged: collect writes it anew

    def _array(self, name: str) -> "zarr.Array[Any]":
        if name not in self._arrays:
            array = self._root[name]  # reads its metadata, which is a request at a URL
            assert isinstance(array, zarr.Array)
            self._arrays[name] = array
        return self._arrays[name]

    def _check_shards(self, file_sizes: Mapping[str, int]) -> None:
        """Refuse missing and truncated shards before they are read: an absent zarr chunk would read as zeros."""
        for name in self._names:
            array = self._array(name)
            expected = (self.tokens, self.d_model) if name in ACTIVATIONS else (self.tokens,)
            if array.shape != expected:
                raise UserError(
                    f"{self.path}: {name} is {list(array.shape)}, expected {list(expected)}; {self._remedy}"
                )
            if _stored(name, file_sizes) != self.attributes["stored_bytes"][name]:
                raise UserError(f"{self.path}: {name} is truncated or was changed; {self._remedy}")

    def _read(self, name: str, start: int, stop: int | None) -> NDArray[Any]:
        try:
            with explain_errors(self._place):
                return np.asarray(self._array(name)[start:stop])
        except DAMAGE as error:
            raise self._damaged(f"{name} is damaged", error) from error

    def _damaged(self, what: str, error: BaseException) -> UserError:
        return UserError(f"{self.path}: {what} ({' '.join(str(error).split())}); {self._remedy}")

    def labels(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.int32]:
        """Return ``token``, ``document``, ``position`` or ``context`` of rows [start, stop)."""
        return self._read(name, start, stop)

    def members(self, documents: NDArray[np.bool_], start: int, stop: int) -> NDArray[np.bool_]:
        """Say which of rows [start, stop) are of the chosen ``documents`` (a mask over ids) and no norm outliers."""
        chosen = documents[self.labels("document", start, stop)]
        for name, limit in zip(ACTIVATIONS, self.attributes.get("norm_limits", ()), strict=False):
            chosen = chosen & (self._read(name + NORM, start, stop) <= limit)
        return chosen

    def figures(self, tokens: int) -> dict[str, float]:
        """Return what became of ``tokens`` tokens that the model read, and the size of what is stored."""
        left_out = self.attributes["left_out"]
        return {
            "stored_tokens": self.tokens - left_out,
            "special_left_out": tokens - self.tokens,
            "norm_outliers_left_out": left_out,
            "x_rms": (self.attributes["mlp_in_mean_square"] / self.d_model) ** 0.5,
            "y_rms": (self.attributes["mlp_out_mean_square"] / self.d_model) ** 0.5,
        }

    def rows(self, name: str, start: int, stop: int) -> Float[Tensor, "tokens d"]:
        """Return ``mlp_in`` or ``mlp_out`` of rows [start, stop), in the stored dtype; int8 and recomputed: float32."""
        if name not in self.held:
            return self.recompute(self.rows("mlp_in", start, stop))
        parts = [part for part in (name, name + SCALE) if part in self._names]
        return from_storage(name, {part: self._read(part, start, stop) for part in parts})

    def recompute(self, x: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens d"]:
        """Return the y of ``x``, float32, on x's device, by the model's own MLP.

        Raises:
            UserError: the store was opened without it.
        """
        if self.mlp is None:
            raise UserError(
                f"{self.path}: holds x alone (collect.outputs: recomputed), and y needs the model's MLP; open it with "
                "transcoders.activations.recompute.open_store, or collect with collect.outputs: stored"
            )
        return self.mlp(x.float())


def _target(folder: Place, pointer: bytes) -> Place:
    """Return where the store lies that ``pointer``, the content of ``folder``'s file, stands for.

    Raises:
        UserError: it is gone, or another store is there.
    """
    try:
        content = json.loads(pointer)
        url, expected = place(content["url"]), content["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: {POINTER} is damaged ({error}); run `dvc repro --force collect`") from None
    if digest(url) != expected:
        raise UserError(
            f"{folder}: the store at {url} is gone, or no longer the one that was collected; put it back, or "
            "run `dvc repro --force collect`"
        )
    return url
