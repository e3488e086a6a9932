"""Places of stores and models: folders, and URLs that fsspec knows (``s3://``, ``gs://``, ``https://``, …).

Credentials and endpoints come from where each protocol's package looks for them: the environment and its own files.
"""

import errno
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from transcoders.core.errors import UserError
from transcoders.core.files import cache_folder, fingerprint, replacing

Place = Path | str
"""A local path, or a URL as text."""
WEIGHT_SUFFIXES, SETTINGS_SUFFIXES = (".safetensors", ".npz"), (".json", ".yaml")
EXTRAS = {"s3": "s3", "s3a": "s3"}
"""Protocol -> the extra of pyproject.toml that brings its package."""


class UnreachableError(UserError):
    """Tell that nobody answered: nothing is wrong with the address."""


def place(text: Path | str) -> Place:
    """Return a URL as it is but for a final slash; all else, ``file://`` too, as a path."""
    if isinstance(text, Path) or "://" not in text:
        return Path(text)
    if text.startswith(("file://", "local://")):
        return Path(re.sub(r"^\w+://", "", text))
    return text.rstrip("/")


def redacted(url: str) -> str:
    """Return ``url`` without the secrets that one can hold: a password, a token before the host, a signature.

    A name before the host of another protocol than the web's is none: it may be a container's.
    """
    url = re.sub(r"^(https?://)[^/?#]*@", r"\1***@", url, flags=re.IGNORECASE)
    return re.split("[?#]", re.sub(r"://([^/@:]*):[^/@]*@", r"://\1:***@", url))[0]


def refuse_secrets(key: str, url: str) -> None:
    """Refuse a URL of the parameter ``key`` that holds what may be a secret, without repeating it.

    Raises:
        ValueError: it does. (Settings turn it into a user's error.)
    """
    if "://" in url and redacted(url) != url:
        raise ValueError(
            f"{key}: a URL must hold no password, no token and no query; credentials belong in the environment"
        )


def name_of(where: Place) -> str:
    """Return the last part of a place."""
    return Path(where if isinstance(where, Path) else redacted(where)).name


@contextmanager
def explain_errors(where: Place) -> Iterator[None]:
    """Turn what goes wrong at a URL into one line; errors at a path stay as they are.

    Raises:
        UnreachableError: no connection; UserError: anything else.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        ours = type(error).__module__ == "builtins" and not isinstance(error, OSError | ValueError | ImportError)
        if isinstance(where, Path) or ours or getattr(error, "errno", None) == errno.ENOSPC:
            raise
        raise _explained(where, error) from None  # other libraries' texts may quote keys and signed addresses


def _explained(url: str, error: Exception) -> UserError:
    name, protocol = type(error).__name__, url.partition("://")[0]
    if isinstance(error, ImportError) and protocol in EXTRAS:
        remedy = f"needs a package that is not installed; run `pip install 'mtxplt[{EXTRAS[protocol]}]'`"
    elif isinstance(error, ImportError) or "Protocol not known" in str(error):
        remedy = f"{error}; fsspec's list of protocols tells the package"
    elif "Credential" in name or "NoAuth" in name:
        remedy = (
            "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
            "or what else the protocol's package reads"
        )
    elif isinstance(error, PermissionError) or getattr(error, "status", None) in (401, 403):
        remedy = "access is denied; check the credentials in the environment, and what they may read and write"
    elif isinstance(error, FileNotFoundError):
        remedy = "there is no such bucket, folder or file; correct the URL"
    elif isinstance(error, ConnectionError | TimeoutError) or re.search("Connect|Timeout|ServerError", name):
        return UnreachableError(
            f"{redacted(url)}: cannot be reached ({name}); check the connection and, for a server of your own, "
            "AWS_ENDPOINT_URL"
        )
    else:
        remedy = f"reading or writing failed ({name}); is it whole? run again, or write it anew"
    return UserError(f"{redacted(url)}: {remedy}")


def _file_system(where: Place) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # a tenth of a second, which most commands need not wait for

    file_system, path = url_to_fs(str(where))
    file_system.invalidate_cache()  # another process may have written since
    return file_system, str(path)


def sizes(folder: Place) -> dict[str, int]:
    """Return the bytes of each file below ``folder``, by its relative path."""
    with explain_errors(folder):
        file_system, root = _file_system(folder)
        return {p.removeprefix(root).strip("/"): e["size"] for p, e in file_system.find(root, detail=True).items()}


def read_bytes(folder: Place, name: str) -> bytes | None:
    """Return the content of the file ``name`` in ``folder``; None if there is none."""
    with explain_errors(folder):
        file_system, root = _file_system(folder)
        try:
            return bytes(file_system.cat_file(f"{root}/{name}"))
        except (FileNotFoundError, NotADirectoryError):
            return None


def zarr_store(where: Place, *, read_only: bool = False) -> Any:
    """Return what zarr opens; in a store that is only read an absent chunk, zeros to zarr, is an error."""
    if isinstance(where, Path):
        return where
    from zarr.storage import FsspecStore

    class StrictStore(FsspecStore):
        """Read a store whose every chunk is written."""

        async def get(self, key: str, *arguments: Any, **options: Any) -> Any:
            value = await super().get(key, *arguments, **options)
            if value is None and "/c/" in key:
                raise FileNotFoundError(key)
            return value

    with explain_errors(where):
        return (StrictStore if read_only else FsspecStore).from_url(where, read_only=read_only)


def fetched(url: str, patterns: Sequence[str]) -> Path:
    """Download the files of a folder whose names match into the user's cache, unless they are there already.

    A URL that ends like weights is a file: it comes with the matching settings files beside it. What
    changed is fetched anew, and the old removed.

    Raises:
        UserError: nothing matches, or it cannot be had.
    """
    with explain_errors(url):
        file_system, root = _file_system(url)
        is_file = PurePosixPath(root).suffix in WEIGHT_SUFFIXES
        folder, file_name = root.rpartition("/")[::2] if is_file else (root, "")
        entries = {}
        for entry in file_system.ls(folder, detail=True):
            name = PurePosixPath(entry["name"]).name
            matches = any(fnmatch(name, pattern) for pattern in patterns)
            if name == file_name or (matches and (not is_file or name.endswith(SETTINGS_SUFFIXES))):
                entries[name] = file_system.info(entry["name"])
        if not entries or (is_file and file_name not in entries):
            raise UserError(
                f"{redacted(url)}: holds none of {', '.join([file_name] if file_name else patterns)}; correct the URL"
            )
        home = cache_folder("models") / fingerprint(url)
        target = home / fingerprint(sorted(entries.items()))
        if not target.is_dir():
            with replacing(target) as temporary:
                temporary.mkdir()
                for name, entry in entries.items():
                    file_system.get_file(entry["name"], str(temporary / name))
                    if entry.get("size") not in (None, (temporary / name).stat().st_size):
                        raise UserError(f"{redacted(url)}/{name}: arrived cut off; run again")
            for old in home.iterdir():
                if old != target and not old.name.startswith("."):
                    shutil.rmtree(old, ignore_errors=True)
    return target / file_name


@contextmanager
def writing(where: Place, last: str) -> Iterator[Path]:
    """Yield a folder to fill; one for a URL is uploaded after the block, the file ``last`` after all others.

    Without ``last`` a folder is not valid, so nobody takes half of it for the whole.
    """
    if isinstance(where, Path):
        yield where
        return
    with TemporaryDirectory() as temporary:
        local = Path(temporary) / name_of(where)
        yield local
        names = sorted(str(path.relative_to(local)) for path in local.rglob("*") if path.is_file())
        with explain_errors(where):
            file_system, root = _file_system(where)
            if file_system.exists(f"{root}/{last}"):
                file_system.rm_file(f"{root}/{last}")
            for name in sorted(names, key=lambda name: name == last):
                file_system.put_file(str(local / name), f"{root}/{name}")
