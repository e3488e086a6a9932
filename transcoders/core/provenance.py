"""The identity of a model's folder, as stage `model` recorded it."""

import hashlib
import json
from pathlib import Path

from transcoders.core.files import sha256_of

PROVENANCE = "provenance.json"


def model_hash(folder: Path) -> str:
    """Return a hash of all in ``folder`` that decides what the model computes: weights, config and tokenizer.

    The weights' own hashes are those that stage `model` recorded: they are too large to read each time.
    """
    weights = json.loads((folder / PROVENANCE).read_text())["sha256"]
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != PROVENANCE)
    names = [(str(path.relative_to(folder)), path) for path in files]
    hashes = [(name, weights.get(name) or sha256_of(path)) for name, path in names]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
