"""Whole files or none: everything is written beside its place and moved there when complete."""

import errno
import glob
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from transcoders.core.errors import UserError

OS_ERROR = re.compile(r"(?:\(os error |\[Errno )(\d+)")
"""How safetensors and shutil.copytree say, in the middle of a message, what the operating system refused."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it becomes ``path`` if the block succeeds.

    Works for a file and for a directory. After an exception (a full disk, Ctrl-C) ``path`` is as
    it was before and the temporary is gone; what a killed process left is removed by the next. The temporary
    has a folder of its own, so that what other libraries write beside it, and rename, goes the same way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    begin = f".{path.name}.{platform.node()}."
    for left in path.parent.glob(f"{glob.escape(begin)}*.tmp"):
        if not _is_another(left.name.removeprefix(begin).removesuffix(".tmp")):
            _remove(left)
    workshop = path.parent / f"{begin}{os.getpid()}.tmp"
    temporary, old = workshop / path.name, workshop / ".old"
    try:
        workshop.mkdir()
        yield temporary
        _move(temporary, path, old)
    except Exception as error:
        refused = OS_ERROR.search(str(error))
        if refused is None or isinstance(error, UserError) or getattr(error, "errno", None) is not None:
            raise
        raise OSError(int(refused[1]), os.strerror(int(refused[1])), str(path)) from error
    finally:
        _remove(workshop)


def _move(temporary: Path, path: Path, old: Path) -> None:
    while True:
        if path.is_dir():
            _remove(old)
            with suppress(FileNotFoundError):
                os.replace(path, old)  # at once: a folder that is half removed would look like a whole one
        try:
            os.replace(temporary, path)
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # another process put its folder there just now
                raise


def _is_another(pid: str) -> bool:
    """Say whether a process other than this one has this number."""
    if pid == str(os.getpid()) or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


@contextmanager
def alone(path: Path, work: str, *, here: bool = True) -> Iterator[None]:
    """Keep every other process off the output ``path`` while this one does ``work``, such as "training it".

    Of several processes that work together, the one ``here`` does this for all.

    Raises:
        UserError: another process is at it.
    """
    if not here:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.parent / f".{path.name}.lock", timeout=0):
            yield
    except Timeout:
        raise UserError(
            f"{path.name}: another process is {work}; wait until it is done, or stop it and rerun to continue where "
            "it was"
        ) from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` with a fixed layout, so that equal content gives equal bytes."""
    text = json.dumps(content, indent=2, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n")


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        UserError: it is missing, damaged, or holds something else.
    """
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path}: not readable JSON ({error}); {remedy}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object; {remedy}")
    return content


def read_yaml(path: Path, name: str) -> Any:
    """Return what a YAML file holds, in plain types; ``name`` is what messages call it.

    Raises:
        UserError: it is not valid YAML.
        FileNotFoundError: there is no such file.
    """
    try:
        return YAML(typ="safe").load(path)
    except (YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None


def merge_yaml(source: Path, override: Mapping[str, Any], target: Path) -> None:
    """Write ``target``: the YAML file ``source`` with the values of ``override``, and with its comments."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 120
    content = yaml.load(source)
    _merge(content, override)
    with target.open("w") as out:
        yaml.dump(content, out)


def _merge(target: Any, override: Mapping[str, Any]) -> None:
    for key, value in override.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), Mapping):
            _merge(target[key], value)
        elif isinstance(value, list) and isinstance(target.get(key), list):
            target[key][:] = value  # in place, so that the list keeps its style and comments
        else:
            target[key] = value


def files_hash(files: Iterable[Path], root: Path = Path()) -> str:
    """Return a hash of the names, relative to ``root``, and the bytes of ``files``."""
    digest = hashlib.sha256()
    for path in sorted(set(files)):
        digest.update(f"{path}\0".encode())
        digest.update((root / path).read_bytes())
    return digest.hexdigest()[:16]


def rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return ``metrics`` to six significant digits: what a reader needs, and stable between machines."""
    return {name: float(f"{value:.6g}") for name, value in metrics.items()}


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """Return a short hash of JSON-serialisable values, equal exactly when they are equal."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cache_folder(kind: str) -> Path:
    """Return where unfinished work lives between runs: outside the outputs that DVC deletes.

    Raises:
        UserError: no variable names a place, and the user has no home (in a container, for example).
    """
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        raise UserError(
            "XDG_CACHE_HOME: is not set, and there is no home folder (HOME) for unfinished work; set it to a folder "
            "that may be written"
        ) from None
    return Path(root) / "mtxplt" / kind
