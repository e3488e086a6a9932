"""Redundancy: how alike decoder rows are, and whether alike ones fire together."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Int
from scipy.sparse import coo_array, csr_array
from torch import Tensor
from torch.nn.functional import normalize

from transcoders.absorption.dictionary import Dictionary
from transcoders.activations.reader import LabelledBatch
from transcoders.evaluation.latents import largest_cosines

QUANTILES = (0.05, 0.5, 0.95, 0.99)
ROWS = 1024


@torch.no_grad()
def redundancy(dictionary: Dictionary, batches: Iterable[LabelledBatch], near_parallel: float) -> dict[str, float]:
    """Return quantiles of each row's largest cosine to another, and P(j fires | i fires) of near-parallel pairs.

    ``cofiring`` is the mean over ordered pairs (i, j) with cos(d_i, d_j) > ``near_parallel`` of which
    i fires on the tokens of ``batches``; it is left out where there is no such pair.
    """
    rows = dictionary.W_dec.float()
    largest = largest_cosines(rows, rows, same=True).double().cpu()
    quantiles = largest.quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    metrics = {f"max_cosine_p{round(100 * q)}": value for q, value in zip(QUANTILES, quantiles, strict=True)}
    metrics["near_parallel_fraction"] = float((largest > near_parallel).double().mean())
    pairs = near_parallel_pairs(rows, near_parallel)
    metrics["near_parallel_pairs"] = float(len(pairs))
    if len(pairs):
        together, firings = _cofirings(dictionary, batches, pairs)
        fired = firings > 0
        if fired.any():
            metrics["cofiring"] = float(np.mean(together[fired] / firings[fired]))
    return metrics


@torch.no_grad()
def near_parallel_pairs(rows: Tensor, least: float) -> Int[Tensor, "pairs 2"]:
    """Return the ordered pairs (i, j), i != j, of rows whose cosine is more than ``least``."""
    unit = normalize(rows.float(), dim=1)
    pairs = []
    for start in range(0, len(unit), ROWS):
        i, j = torch.nonzero(unit[start : start + ROWS] @ unit.T > least, as_tuple=True)
        i = i + start
        pairs.append(torch.stack([i[i != j], j[i != j]], 1))
    return torch.cat(pairs)


def _cofirings(
    dictionary: Dictionary, batches: Iterable[LabelledBatch], pairs: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each pair (i, j), the tokens on which both fire, and those on which i does."""
    involved, position = torch.unique(pairs, return_inverse=True)
    column = torch.full((len(dictionary.W_dec),), -1).index_put((involved.cpu(),), torch.arange(len(involved)))
    total = csr_array((len(involved), len(involved)), dtype=np.int64)
    for batch in batches:
        latents = dictionary.encode(batch.x)
        columns = column[latents.indices.cpu().long()]
        wanted = (columns >= 0) & (latents.values > 0).cpu()
        place = (latents.rows().cpu()[wanted].numpy(), columns[wanted].numpy())
        fires = coo_array((np.ones(len(place[0]), np.int64), place), shape=(latents.tokens, len(involved))).tocsr()
        total = total + fires.T @ fires
    i, j = position.cpu().numpy().T
    return np.asarray(total[i, j]).ravel(), total.diagonal()[i]
