"""Tokens as points: those that the language model takes for alike lie near each other."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

UNKNOWN = -1
DIMENSIONS = 128
UNSEEN = 0.1
"""Windows in which a token is counted beside those that hold it, so that none is impossible."""
LEAST_VARIANCE = 1e-9
"""Of the largest: directions with less are noise of the arithmetic."""


class Vocabulary:
    """Hold the points of the tokens of a text: input embeddings, centred and whitened over the text.

    ``points`` [tokens + 1, r] has 0, the mean, as its last row: that is where an unknown token is.
    """

    def __init__(
        self,
        texts: Sequence[str],
        embeddings: NDArray[np.float32],
        counts: NDArray[np.float64],
        dimensions: int = DIMENSIONS,
    ) -> None:
        """Place ``texts``, which occur ``counts`` times, by the first principal components of unit ``embeddings``."""
        self._place = {text: i for i, text in reversed(list(enumerate(texts)))}
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(min=1e-12)
        share = (counts / counts.sum()).astype(np.float32)
        centred = unit - share @ unit
        variance, directions = np.linalg.eigh(((centred * share[:, None]).T @ centred).astype(np.float64))
        chosen = np.flatnonzero(variance > LEAST_VARIANCE * variance[-1])[::-1][:dimensions]
        known = centred @ (directions[:, chosen] / np.sqrt(variance[chosen]))
        self.points = np.pad(known, ((0, 1), (0, 0))).astype(np.float32)

    def find(self, windows: Sequence[Sequence[str]]) -> NDArray[np.int64]:
        """Return the place of each token of each window [windows, longest]; UNKNOWN where there is none."""
        places = np.full((len(windows), max(map(len, windows), default=0)), UNKNOWN)
        for row, tokens in zip(places, windows, strict=True):
            row[: len(tokens)] = [self._place.get(token, UNKNOWN) for token in tokens]
        return places


def vocabulary_of(texts: Mapping[int, str], windows: Mapping[int, int], embeddings: Tensor) -> Vocabulary:
    """Return the vocabulary of the token ids ``texts``, each of which is in so many ``windows`` of the text."""
    counts = np.array([windows.get(number, 0) + UNSEEN for number in texts])
    points = embeddings.detach()[torch.tensor(list(texts), device=embeddings.device)].float().cpu().numpy()
    return Vocabulary(list(texts.values()), points, counts)
