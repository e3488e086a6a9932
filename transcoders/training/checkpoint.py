"""Checkpoints: everything that the next step depends on, in one safetensors file (no pickle)."""

import json
import logging
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from transcoders.core.errors import DAMAGE
from transcoders.dictionary.dictionary import Dictionary
from transcoders.training.sharing import Sharing

log = logging.getLogger(__name__)
CHECKSUM = "crc32"


class Part(Protocol):
    """Describe something that a run consists of, and that can be put back to where it was."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return tensors, and what JSON can hold, by name."""

    def load_state_dict(self, state: Any) -> object:
        """Take over what ``state_dict`` gave."""


class Content(NamedTuple):
    """Hold what was read from a checkpoint: tensors by ``<part>.<name>``, and values by part and name."""

    tensors: dict[str, Tensor]
    values: dict[str, dict[str, Any]]


class CheckpointFile:
    """Write and read the file that a run continues from, of which every process sees the same."""

    def __init__(self, path: Path, sharing: Sharing, *, writes: bool = True) -> None:
        """Name the file, which need not exist; where not this process ``writes`` it, ``save`` does nothing."""
        self.path, self._sharing, self._writes = path, sharing, writes

    def save(self, parts: Mapping[str, Part], owners: Mapping[str, Dictionary]) -> None:
        """Write all ``parts``, or nothing; ``owners`` are the models whose latents a part's rows are."""
        if not self._writes:
            return
        tensors: dict[str, Tensor] = {}
        values: dict[str, dict[str, Any]] = {}
        for name, part in parts.items():
            for key, value in part.state_dict().items():
                if isinstance(value, Tensor):
                    tensors[f"{name}.{key}"] = value.detach()
                else:
                    values.setdefault(name, {})[key] = value
        metadata = {"values": json.dumps(values)}
        if self._sharing.processes == 1:  # of slices no process sees all bytes
            tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
            metadata[CHECKSUM] = _checksum(tensors, metadata["values"])
        self._sharing.save(self.path, tensors, metadata, {name: owners[_part_of(name)] for name in tensors})

    def read(self) -> Content | None:
        """Return the content; None where there is no file, or it is damaged (a sliced run's has no checksum)."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata()
                if metadata.get(CHECKSUM) in (None, _checksum(tensors, metadata["values"])):
                    return Content(tensors, json.loads(metadata["values"]))
        except (*DAMAGE, SafetensorError):
            pass
        log.warning("%s: damaged and not used; training starts over", self.path)
        return None

    def put_back(self, content: Content, parts: Mapping[str, Part], owners: Mapping[str, Dictionary]) -> None:
        """Bring all ``parts`` to where they were when ``content`` was written, each with the rows that lie here."""
        for name, part in parts.items():
            owner = owners[name]
            tensors = {
                key.removeprefix(f"{name}."): self._sharing.here(key, value, owner).to(owner.b_dec.device)
                for key, value in content.tensors.items()
                if _part_of(key) == name
            }
            part.load_state_dict({**content.values.get(name, {}), **tensors})

    def delete(self) -> None:
        """Delete the file: the run's outcome is safe elsewhere."""
        self.path.unlink(missing_ok=True)


def _part_of(name: str) -> str:
    return name.partition(".")[0]


def _checksum(tensors: dict[str, Tensor], values: str) -> str:
    checksum = zlib.crc32(values.encode())
    for name in sorted(tensors):
        values_of = tensors[name].reshape(-1).view(torch.uint8).numpy().data
        checksum = zlib.crc32(values_of, zlib.crc32(name.encode(), checksum))
    return str(checksum)
