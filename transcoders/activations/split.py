"""Splitting documents into train, validation and test."""

import hashlib

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transcoders.activations.settings import SplitSettings
from transcoders.core.errors import UserError

PARTS = ("train", "validation", "test")


def split_documents(documents: pd.DataFrame, settings: SplitSettings) -> pd.DataFrame:
    """Add the column ``split`` to ``documents`` (columns title, tokens).

    Each document's part depends on its title and the seed alone, so added documents move none.

    Raises:
        UserError: a part would be empty.
    """

    def part(title: str) -> str:
        digest = hashlib.sha256(f"{settings.seed}:{title}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        if place < settings.test:
            return "test"
        return "validation" if place < settings.test + settings.validation else "train"

    result = documents.assign(split=[part(title) for title in documents["title"]])
    used = result[result["tokens"] > 0]
    for name in PARTS:
        if name not in set(used["split"]):
            raise UserError(
                f"split.{name}: no document of {len(used)} falls into this part; give more "
                "documents (collect.tokens, collect.text), a larger share or another split.seed"
            )
    return result


def documents_of(split: pd.DataFrame, part: str) -> NDArray[np.bool_]:
    """Return a mask over document ids that marks those of ``part``."""
    return np.asarray(split["split"] == part)
