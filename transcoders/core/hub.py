"""Which commit of a repository on the Hugging Face Hub a name stands for now."""

import re
from typing import Literal

from transcoders.core.errors import UserError


def commit_of(kind: Literal["model", "dataset"], key: str, name: str, revision: str | None) -> str:
    """Return the commit that ``revision``, or else the default branch, of a repository points to.

    What is read of the commit, and recorded with it, is the same text or model for ever; of a branch it is not.

    Raises:
        UserError: ``name``, the value of the parameter ``key``, cannot be a repository's.
        OSError: the Hub does not answer, or knows no such repository or revision (huggingface_hub's errors are these).
    """
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    api = HfApi()
    try:
        found = (api.model_info if kind == "model" else api.dataset_info)(name, revision=revision)
    except HFValidationError:
        raise UserError(f"{key}: {name!r} is no id of the Hugging Face Hub (owner/name); correct it") from None
    return str(found.sha)
