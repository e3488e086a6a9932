"""Tokens as points, those that the language model takes for alike near each other, and as words."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transcoders.features.texts import PAD, word

DIMENSIONS = 128
UNSEEN = 0.1
"""Windows in which a token is counted beside those that hold it, so that none is impossible."""
LEAST_VARIANCE = 1e-9
"""Of the largest: directions with less are noise of the arithmetic."""


class Vocabulary:
    """Hold where the tokens of a text lie, and what words they are; a token is known by its place in these tables.

    ``points`` [tokens + 1, r]: input embeddings, centred and whitened over the text. The last row is the place of
    padding: 0, the mean.
    ``word`` [tokens + 1]: which of ``names``, the words in alphabetical order, each token is.
    ``windows`` [words]: how many windows of the text hold the word (at most).
    """

    def __init__(
        self,
        texts: Mapping[int, str],
        embeddings: NDArray[np.float32],
        windows: NDArray[np.float64],
        dimensions: int = DIMENSIONS,
    ) -> None:
        """Place ``texts``, by token id, by the first principal components of their unit ``embeddings`` [tokens, d].

        ``windows`` [tokens] says in how many windows of the text each is.
        """
        self._place = np.full(max(texts) + 2, len(texts))
        self._place[list(texts)] = np.arange(len(texts))
        self._place[PAD] = len(texts)
        self.points = np.pad(_whitened(embeddings, windows + UNSEEN, dimensions), ((0, 1), (0, 0)))
        names, self.word = np.unique([*map(word, texts.values()), ""], return_inverse=True)
        self.names: list[str] = names.tolist()
        self.windows = np.bincount(self.word[:-1], windows, len(names)).astype(np.float64)

    def places(self, windows: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return the place of each token of ``windows``, which are ids."""
        return self._place[windows]


def _whitened(embeddings: NDArray[np.float32], counts: NDArray[np.float64], dimensions: int) -> NDArray[np.float32]:
    """Return unit ``embeddings`` along their first principal components, each of variance 1 over the text."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(min=1e-12)
    share = (counts / counts.sum()).astype(np.float32)
    centred = unit - share @ unit
    variance, directions = np.linalg.eigh(((centred * share[:, None]).T @ centred).astype(np.float64))
    chosen = np.flatnonzero(variance > LEAST_VARIANCE * variance[-1])[::-1][:dimensions]
    return (centred @ (directions[:, chosen] / np.sqrt(variance[chosen]))).astype(np.float32)


def vocabulary_of(texts: Mapping[int, str], windows: Mapping[int, int], embeddings: Tensor) -> Vocabulary:
    """Return the vocabulary of the token ids ``texts``, each of which is in so many ``windows`` of the text."""
    counts = np.array([windows.get(number, 0) for number in texts], np.float64)
    points = embeddings.detach()[torch.tensor(list(texts), device=embeddings.device)].float().cpu().numpy()
    return Vocabulary(texts, points, counts)
