"""Checkpoints: everything that the next step depends on, in one safetensors file (no pickle)."""

import json
import logging
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from transcoders.core.errors import DAMAGE
from transcoders.core.files import replacing

log = logging.getLogger(__name__)
CHECKSUM = "crc32"


class Checkpoint(NamedTuple):
    """Tensors by name, and what is not a tensor (JSON)."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` whole or not at all."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in checkpoint.tensors.items()}
    values = json.dumps(checkpoint.values)
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"values": values, CHECKSUM: _checksum(tensors, values)})


def load_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at ``path``; None where there is none, or it is damaged (a sliced run's has no checksum)."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
            if metadata.get(CHECKSUM) in (None, _checksum(tensors, metadata["values"])):
                return Checkpoint(tensors, json.loads(metadata["values"]))
    except (*DAMAGE, SafetensorError):
        pass
    log.warning("%s: damaged and not used; training starts over", path)
    return None


def _checksum(tensors: dict[str, Tensor], values: str) -> str:
    checksum = zlib.crc32(values.encode())
    for name in sorted(tensors):
        values_of = tensors[name].reshape(-1).view(torch.uint8).numpy().data
        checksum = zlib.crc32(values_of, zlib.crc32(name.encode(), checksum))
    return str(checksum)
