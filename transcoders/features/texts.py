"""Tokens as text: what each id reads as, and which ids are the same word."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

PAD = -1
"""In the place of a token where a window has none."""


class Texts:
    """Turn token ids into text, and decode each id once."""

    known: dict[int, str]

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.known = {}

    def learn(self, ids: NDArray[np.integer[Any]]) -> None:
        """Decode the ids that are new."""
        new = [i for i in np.unique(ids).tolist() if i != PAD and i not in self.known]
        if new:
            self.known.update(zip(new, self._tokenizer.batch_decode([[i] for i in new]), strict=True))

    def of(self, ids: NDArray[np.integer[Any]]) -> list[str]:
        """Return the texts of ids, padding left out."""
        return [self.known[i] for i in ids.tolist() if i != PAD]


def word(token: str) -> str:
    """Return what makes tokens the same word: case and spaces around it do not matter."""
    return token.strip().lower() or token
