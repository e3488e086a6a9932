"""Putting finished stores where the pipeline looks for them, and what decides whether one may be taken again."""

import hashlib
import os
import shutil
import time
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path

from transcoders.activations.store import content_files, point
from transcoders.collecting.contexts import Contexts
from transcoders.collecting.settings import CollectSettings
from transcoders.core.files import fingerprint, sha256_of
from transcoders.core.places import Place, place

LIBRARIES = ("torch", "transformers", "transformer_lens", "tokenizers")
"""Whose versions may change what a model computes."""
UNUSED_SECONDS = 24 * 3600
"""For so long finished and abandoned work lies in the cache, so that going back to it costs nothing."""


def store_keys(settings: CollectSettings, contexts: Contexts, model: Path, code: str) -> dict[int, str]:
    """Return, by layer, the hash of all that its store depends on."""
    return {n: layer_fingerprint(settings, n, contexts, model, code) for n in sorted(set(settings.layers))}


def layer_fingerprint(settings: CollectSettings, layer: int, contexts: Contexts, model: Path, code: str) -> str:
    """Return a hash of all that a layer's store depends on; equal ones mean equal stores.

    ``code`` is a hash of the code that collects; of the folder ``model`` every file counts, its config and its
    tokenizer as much as its weights.
    """
    relevant = settings.model_dump(exclude={"layers", "url"})
    digests = [hashlib.sha256(array.tobytes()).hexdigest() for array in contexts[:2]]
    return fingerprint(relevant, layer, digests, folder_hash(model), code, [version(name) for name in LIBRARIES])


def folder_hash(folder: Path) -> str:
    """Return a hash of the names and the bytes of all files below ``folder``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return fingerprint([(str(path.relative_to(folder)), sha256_of(path)) for path in files])


def store_place(url: str | None, layer: int, work: Path) -> Place:
    """Name a store's own place; at a URL the name has all that it depends on, so that none is ever overwritten."""
    return place(f"{url}/layer_{layer}-{work.name}.zarr" if url else work / "store.zarr")


def publish_all(stores: Mapping[int, Place], folder: Path) -> None:
    """Put the finished stores, by layer, or pointers to those that lie at a URL, into the new ``folder``."""
    for layer, where in stores.items():
        target = folder / f"layer_{layer}.zarr"
        if isinstance(where, Path):
            publish(where, target)
            os.utime(where.parent)
        else:
            point(target, where)


def publish(path: Path, target: Path) -> None:
    """Put the finished store at ``path`` to ``target``, hard-linked where that works, so that it costs no disk.

    Only what belongs to a store goes along: a process that was killed may have left zarr's temporary files.
    """
    for name in content_files(path):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path / name, target / name)
        except OSError:
            shutil.copy2(path / name, target / name)


def forget_unused(cache: Path, used: Collection[Path]) -> None:
    """Remove work from the folder ``cache`` that is none of ``used`` and has long been idle."""
    for folder in cache.iterdir():
        old = time.time() - folder.stat().st_mtime > UNUSED_SECONDS
        if folder.is_dir() and folder not in used and old:
            shutil.rmtree(folder, ignore_errors=True)
