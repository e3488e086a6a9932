"""Where a transcoder's files are: a path, a URL, or ``org/repo:folder`` on the Hugging Face Hub."""

import logging
from pathlib import Path
from typing import NamedTuple

from transcoders.core.errors import UserError
from transcoders.core.places import UnreachableError, fetched, place, read_bytes, redacted
from transcoders.dictionary.crosslayer import files
from transcoders.dictionary.transcoder import CONFIG

log = logging.getLogger(__name__)

FILES = (
    "params.npz",
    "params.safetensors",
    "config.json",
    "cfg.json",
    "sae_weights.safetensors",
    "sae.safetensors",
    "transcoder.safetensors",
    "config.yaml",
    "layer_*.safetensors",
    "params_layer_*.safetensors",
    "W_enc_*.safetensors",
    "W_dec_*.safetensors",
    "clt_cfg.json",
    "clt_weights.safetensors",
)
"""All that is ever downloaded: no pickles."""


class HubUnreachableError(UnreachableError):
    """Tell that the Hub gave no answer: nothing is wrong with the reference."""


class Source(NamedTuple):
    """Say where a transcoder's files are."""

    name: str
    """As the user wrote it, for messages."""
    folder: Path
    path: str
    """The name of the folder with those above it, which say the layer, the model and the L0."""


def locate(reference: str) -> Source:
    """Return a local path, or the files of a URL or a Hub repository, downloaded into a cache.

    Raises:
        UserError: there is no such thing, or the user may not read it; UnreachableError: no connection.
    """
    local = place(reference)
    if isinstance(local, str):
        across = files.CHECKSUMS.encode() in (read_bytes(local, CONFIG) or b"")
        # A set's layers are large: one of them must be named.
        downloaded = fetched(local, [name for name in FILES if across or not name.startswith("layer_")])
        return Source(redacted(local), downloaded, redacted(local))
    if local.exists() or not is_hub_reference(reference):
        return Source(reference, local, str(local.resolve()))
    repo, _, folder = reference.partition(":")
    folder = folder.strip("/")
    downloaded = download(repo, folder)
    return Source(reference, downloaded, f"{repo}/{folder}")


def is_hub_reference(reference: str) -> bool:
    """Say whether a reference is ``org/repo:folder`` (the folder may be empty)."""
    repo, colon, folder = reference.partition(":")
    return bool(colon) and repo.count("/") == 1 and not repo.startswith((".", "/")) and ".." not in folder.split("/")


def download(repo: str, folder: str) -> Path:
    """Download the folder's known files into the local cache; what is there already is not fetched again."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    reference = f"{repo}:{folder}"
    try:
        root = Path(snapshot_download(repo, allow_patterns=[f"{folder}/{name}".lstrip("/") for name in FILES]))
    except GatedRepoError:
        raise UserError(
            f"{reference}: you may not read it yet; accept its terms at https://huggingface.co/{repo}, "
            "then log in with `hf auth login` (or set HF_TOKEN) and run again"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(
            f"{reference}: no repository {repo!r} on the Hugging Face Hub that you may read; check the spelling, "
            "or log in with `hf auth login`"
        ) from None
    except LocalEntryNotFoundError:
        raise HubUnreachableError(
            f"{reference}: the Hugging Face Hub cannot be reached, and the files are not in its cache; "
            "check the connection (and HF_HUB_OFFLINE), or give a local folder"
        ) from None
    except Exception as error:
        if not connection_broke(error) and not isinstance(error, HfHubHTTPError):
            raise
        raise HubUnreachableError(
            f"{reference}: the download did not finish ({type(error).__name__}); run again to continue where it stopped"
        ) from None
    result = root / folder
    if not any(path.is_file() for pattern in FILES for path in result.glob(pattern)):
        raise UserError(
            f"{reference}: holds none of {', '.join(FILES)}; check the folder at "
            f"https://huggingface.co/{repo}/tree/main (offline, only what was downloaded before is there)"
        )
    return result


def connection_broke(error: Exception) -> bool:
    """Say whether the network failed: which library says so depends on huggingface_hub's version."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in ("httpx", "httpx2", "requests")
