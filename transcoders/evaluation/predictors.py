"""What can stand in for an MLP: a transcoder, or a baseline that puts one in its place."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from transcoders.activations.reader import LabelledBatch
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.reconstruction import Prediction, Predictor

RIDGE = 1e-6  # of the mean squared input: keeps the normal equations solvable, changes nothing else


def transcoder_predictor(model: Transcoder) -> Predictor:
    """Return the predictor that a transcoder is."""

    def predict(x: Tensor, y: Tensor) -> Prediction:
        latents = model.encode(x)
        return Prediction(model.decode(latents, x), latents)

    return predict


def constant(value: Float[Tensor, "d_out"]) -> Predictor:
    """Return the predictor of the same output for every token (zero, or the mean)."""
    return lambda x, y: Prediction(value.to(y).expand_as(y), None)


class Moments(NamedTuple):
    """Hold second moments of training activations, float64, about their means."""

    x_mean: Float[Tensor, "d_in"]
    y_mean: Float[Tensor, "d_out"]
    xx: Float[Tensor, "d_in d_in"]
    xy: Float[Tensor, "d_in d_out"]
    yy: Float[Tensor, "d_out d_out"]


def moments(batches: Iterable[LabelledBatch]) -> Moments:
    """Accumulate the moments of ``batches`` in one pass."""
    tokens, sums = 0, [torch.zeros(())] * 5
    for batch in batches:
        x, y = batch.x.double(), batch.y.double()
        tokens += len(x)
        parts = (x.sum(0), y.sum(0), x.T @ x, x.T @ y, y.T @ y)
        sums = [total.to(part) + part for total, part in zip(sums, parts, strict=True)]
    x_mean, y_mean, xx, xy, yy = (total / tokens for total in sums)
    return Moments(
        x_mean,
        y_mean,
        xx - torch.outer(x_mean, x_mean),
        xy - torch.outer(x_mean, y_mean),
        yy - torch.outer(y_mean, y_mean),
    )


def affine(m: Moments) -> Predictor:
    """Return the least-squares affine map from x to y: what no latent is needed for."""
    ridge = RIDGE * m.xx.diagonal().mean() * torch.eye(len(m.xx), dtype=m.xx.dtype, device=m.xx.device)
    weight = torch.linalg.solve(m.xx + ridge, m.xy).float()
    bias = (m.y_mean - m.x_mean @ weight.double()).float()
    return lambda x, y: Prediction(x @ weight.to(x) + bias.to(x), None)


def pca(m: Moments, rank: int) -> Predictor:
    """Return the best linear code of y itself with ``rank`` numbers a token (it reads the true y)."""
    basis = torch.linalg.eigh(m.yy).eigenvectors[:, -rank:].float()
    mean = m.y_mean.float()

    def predict(x: Tensor, y: Tensor) -> Prediction:
        directions = basis.to(y)
        return Prediction(mean.to(y) + (y - mean.to(y)) @ directions @ directions.T, None)

    return predict
