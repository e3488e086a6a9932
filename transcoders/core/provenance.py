"""The identity of a model's folder, as stage `model` recorded it."""

import json
from pathlib import Path

PROVENANCE = "provenance.json"


def model_hash(folder: Path) -> str:
    """Return the SHA-256 of the weights in ``folder`` (of one file, or of the list of shards)."""
    hashes = sorted(json.loads((folder / PROVENANCE).read_text())["sha256"].items())
    return str(hashes[0][1] if len(hashes) == 1 else hashes)
