"""Sparse transcoders: dictionaries that replace a language model's MLP.

``transcoders.load``, ``transcoders.Transcoder`` and ``transcoders.UserError`` are loaded on first use, so that
importing one part of the library neither costs nor depends on the others.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Transcoder": "transcoders.dictionary.transcoder",
    "UserError": "transcoders.core.errors",
    "load": "transcoders.formats.read",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'transcoders' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
