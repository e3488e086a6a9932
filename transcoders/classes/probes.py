"""Probes for word classes on y, fitted to half of a class's words and judged on the other half."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from transcoders.activations.reader import LabelledBatch
from transcoders.classes.words import NO_WORD, Words

RIDGE = 1e-3
"""Of the mean variance of y's dimensions, added to each before the covariance is inverted."""
ALIKE = 10
"""Words of the next frequencies, of which one stands for a member in a class of random words."""


class Half(NamedTuple):
    """Hold one random half of a class's words, to learn from, and the other, to judge on: numbers of words."""

    learn: NDArray[np.int64]
    judge: NDArray[np.int64]

    @property
    def members(self) -> NDArray[np.int64]:
        """All words of the class."""
        return np.concatenate([self.learn, self.judge])


class Outputs(NamedTuple):
    """Hold y of the tokens that probes are judged on, and what probes are fitted with."""

    y: Float[Tensor, "tokens d_out"]
    """Of all tokens that are a word, and of a sample of the others."""
    word: NDArray[np.int64]
    """Number of the word of each of these tokens, or ``NO_WORD``."""
    sample: NDArray[np.int64]
    """Numbers of these tokens that are a fair sample of all tokens."""
    means: Float[Tensor, "words d_out"]
    mean: Float[Tensor, "d_out"]
    precision: Float[Tensor, "d_out d_out"]
    """Inverse of the covariance."""


def half_of(members: NDArray[np.int64], rng: np.random.Generator) -> Half:
    """Draw a random half of ``members``."""
    words = rng.permutation(members)
    return Half(words[: len(words) // 2], words[len(words) // 2 :])


def random_class(members: NDArray[np.int64], counts: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return as many words outside a class, each about as frequent as one of its ``members``."""
    free = np.argsort(counts, kind="stable")
    free = free[~np.isin(free, members)]
    chosen = []
    for place in np.searchsorted(counts[free], counts[members]):
        near = np.arange(max(0, place - ALIKE), min(len(free), place + ALIKE))
        near = near[free[near] != NO_WORD]
        if len(near):
            picked = int(rng.choice(near))
            chosen.append(free[picked])
            free[picked] = NO_WORD
    return np.array(chosen)


def read_outputs(batches: Iterable[LabelledBatch], words: Words, others: int, rng: np.random.Generator) -> Outputs:
    """Read y of the tokens ``words.at`` tells of, in the same order, and the moments of all of them."""
    total = len(words.at)
    sample = np.zeros(total, bool)
    sample[rng.permutation(total)[:others]] = True
    wanted = sample | (words.at != NO_WORD)
    parts, second, first, start = [], torch.zeros(()), torch.zeros(()), 0
    for batch in batches:
        y = batch.y.double()
        second, first = second + (y.T @ y).cpu(), first + y.sum(0).cpu()
        parts.append(batch.y.cpu()[torch.from_numpy(wanted[start : start + len(y)])])
        start += len(y)
    y, word = torch.cat(parts), words.at[wanted]
    mean = first / total
    covariance = second / total - mean.outer(mean)
    ridge = RIDGE * covariance.diagonal().mean() * torch.eye(len(mean), dtype=mean.dtype)
    sums = torch.zeros(len(words.texts) + 1, y.shape[1])
    sums.index_add_(0, torch.from_numpy(word % len(sums)), y)  # NO_WORD: the last row
    means = sums[:-1] / torch.from_numpy(words.counts)[:, None]
    return Outputs(y, word, np.flatnonzero(sample[wanted]), means, mean.float(), (covariance + ridge).inverse().float())


def directions(outputs: Outputs, drawn: list[Half], counts: NDArray[np.int64]) -> Float[Tensor, "halves d_out"]:
    """Return the direction of linear discriminant analysis for each half that is to learn from, of length 1."""
    means = torch.stack(
        [(outputs.means[half.learn] * _share(counts[half.learn])[:, None]).sum(0) - outputs.mean for half in drawn]
    )
    return torch.nn.functional.normalize(means @ outputs.precision, dim=-1)


def mean_auroc(outputs: Outputs, drawn: list[Half], probes: Float[Tensor, "halves d_out"]) -> float:
    """Return the mean AUROC of the probes, of words to judge on against tokens that are no members."""
    words = outputs.word[outputs.sample]
    of_sample = (outputs.y[outputs.sample] @ probes.T).numpy()
    result = []
    for number, half in enumerate(drawn):
        inside = outputs.y[np.isin(outputs.word, half.judge)] @ probes[number]
        outside = of_sample[~np.isin(words, half.members), number]
        ranks = rankdata(np.concatenate([inside.numpy(), outside]))[: len(inside)]
        result.append((ranks.sum() - len(inside) * (len(inside) + 1) / 2) / (len(inside) * len(outside)))
    return float(np.mean(result))


def _share(counts: NDArray[np.int64]) -> Float[Tensor, "words"]:
    return torch.from_numpy(counts / counts.sum()).float()
