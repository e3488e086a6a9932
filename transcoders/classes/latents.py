"""What latents do on words: how often each fires on each word's tokens, and how much it writes there."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from transcoders.activations.reader import LabelledBatch
from transcoders.classes.words import Words
from transcoders.dictionary.transcoder import Transcoder


class Activity(NamedTuple):
    """Hold sums over tokens; the last row is of all tokens that are no frequent word."""

    fires: Float[Tensor, "words_and_rest d_hidden"]
    """Tokens on which a latent is above 0."""
    total: Float[Tensor, "words_and_rest d_hidden"]
    """Sum of its activations."""
    fired: Float[Tensor, "d_hidden"]
    """Tokens on which each latent is above 0, words or not."""
    mean: Float[Tensor, "d_hidden"]
    """Mean activation over all tokens."""
    l0: float

    def means(self, counts: NDArray[np.int64]) -> Float[Tensor, "words d_hidden"]:
        """Return the mean activation of each latent over the tokens of each word, of which there are ``counts``."""
        return self.total[:-1] / torch.from_numpy(counts)[:, None].float()


@torch.no_grad()
def activity(model: Transcoder, batches: Iterable[LabelledBatch], words: Words) -> Activity:
    """Encode the tokens that ``words.at`` tells of, in the same order, and sum over those of each word."""
    shape = len(words.texts) + 1, model.config.d_hidden
    fires, total, start = torch.zeros(shape), torch.zeros(shape), 0
    for batch in batches:
        latents = model.encode(batch.x)
        at = words.at[start : start + len(batch.x)] % shape[0]  # NO_WORD: the last row
        start += len(batch.x)
        place = torch.from_numpy(at)[latents.rows().cpu()] * shape[1] + latents.indices.cpu()
        values = latents.values.float().cpu()
        fires.view(-1).index_add_(0, place, (values > 0).float())
        total.view(-1).index_add_(0, place, values)
    fired = fires.sum(0)
    return Activity(fires, total, fired, total.sum(0) / start, float(fired.sum()) / start)


def f1(hits: Float[Tensor, "*n"], positives: Tensor | float, fired: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return the F1 of firing as a sign of ``positives`` tokens; it ``fired`` on so many, and on ``hits`` of them."""
    return 2 * hits / (positives + fired).clamp(min=1)
