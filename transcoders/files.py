"""Whole files or none: everything is written beside its place and moved there when complete."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it becomes ``path`` if the block succeeds.

    Works for a file and for a directory. After an exception (a full disk, Ctrl-C) ``path`` is as
    it was before and the temporary is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` with a fixed layout, so that equal content gives equal bytes."""
    text = json.dumps(content, indent=2, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n")


def rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    """``metrics`` to six significant digits: what a reader needs, and stable between machines."""
    return {name: float(f"{value:.6g}") for name, value in metrics.items()}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """A short hash of JSON-serialisable values, equal exactly when they are equal."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def source_hash(*modules: ModuleType) -> str:
    """A hash of modules' source code: work begun by other code is never continued."""
    return fingerprint(*(Path(str(module.__file__)).read_text() for module in modules))


def cache_folder(kind: str) -> Path:
    """Where unfinished work lives between runs: outside the outputs that DVC deletes."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "mtxplt" / kind
