"""Checkpoints: everything that the next step depends on, in one safetensors file (no pickle)."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from transcoders.files import replacing


class Checkpoint(NamedTuple):
    """Tensors by name, and what is not a tensor (JSON)."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` whole or not at all."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in checkpoint.tensors.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"values": json.dumps(checkpoint.values)})


def load_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at ``path``; None where there is none or it cannot be read."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Checkpoint(tensors, json.loads(file.metadata()["values"]))
    except (SafetensorError, KeyError, ValueError):
        return None
