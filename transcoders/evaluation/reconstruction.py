"""How well predictions of MLP outputs match, and how the latents that make them behave."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from transcoders.activations.reader import LabelledBatch
from transcoders.evaluation.bootstrap import interval
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.kernels import SparseLatents

DENSE = 0.1
"""A latent is dense if it fires on more than this share of tokens."""
FREQUENT = 0.01
"""A latent is frequent if it fires on more than this share of tokens."""


class Prediction(NamedTuple):
    """Hold predicted MLP outputs (raw units) and the latents behind them, if there are any."""

    y_hat: Float[Tensor, "tokens d_out"]
    latents: SparseLatents | None


Predictor = Callable[[Float[Tensor, "tokens d_in"], Float[Tensor, "tokens d_out"]], Prediction]
"""From raw x to a prediction. The true y is given as well: an oracle such as PCA reads it."""


class Reconstruction(NamedTuple):
    """Hold metrics by name (docs/metrics.md defines them), and how often each latent fired."""

    metrics: dict[str, float]
    firings: Int[Tensor, "d_hidden"]
    tokens: int
    documents: dict[str, Float[Tensor, "documents"]]
    """Sums over the tokens of each document: ``tokens``, ``error`` and ``variation`` (about the mean of all)."""


class _Documents:
    """Sum per document, so that any document-weighted resample can be computed."""

    def __init__(self, documents: int, d_out: int) -> None:
        self.error = torch.zeros(documents, dtype=torch.float64)
        self.y_square = torch.zeros(documents, dtype=torch.float64)
        self.y_sum = torch.zeros(documents, d_out, dtype=torch.float64)
        self.tokens = torch.zeros(documents, dtype=torch.float64)

    def add(self, document: Tensor, y: Tensor, error: Tensor) -> None:
        """Add tokens: the document of each, its raw y and its squared error."""
        exact = y.double().cpu()
        self.error.index_add_(0, document, error.double().cpu())
        self.y_square.index_add_(0, document, exact.square().sum(1))
        self.y_sum.index_add_(0, document, exact)
        self.tokens.index_add_(0, document, torch.ones(len(exact), dtype=torch.float64))

    def fvu(self, weights: Float[Tensor, "resamples documents"]) -> NDArray[np.float64]:
        """Return the sum of squared errors over the sum of squares about each resample's mean."""
        tokens = weights @ self.tokens
        mean = (weights @ self.y_sum) / tokens[:, None]
        variation = weights @ self.y_square - tokens * mean.square().sum(1)
        return np.asarray((weights @ self.error) / variation)

    def sums(self) -> dict[str, Tensor]:
        """Return ``Reconstruction.documents``."""
        mean = self.y_sum.sum(0) / self.tokens.sum()
        variation = self.y_square - 2 * self.y_sum @ mean + self.tokens * mean.square().sum()
        return {"tokens": self.tokens, "error": self.error, "variation": variation}


@torch.inference_mode()
def reconstruction(
    predict: Predictor,
    batches: Iterable[LabelledBatch],
    *,
    documents: int,
    d_hidden: int,
    output_scale: float,
    settings: EvaluateSettings,
) -> Reconstruction:
    """Compute the reconstruction metrics of one predictor over ``batches`` in one pass.

    ``documents`` is the number of document ids, ``d_hidden`` 0 for a predictor without latents.
    fvu is one ratio over the whole set; its interval resamples documents.
    """
    sums: dict[str, float] = dict.fromkeys(("error", "cosine", "relative_norm", "l1"), 0.0)
    per_document: _Documents | None = None
    l0: list[Tensor] = []
    firings = torch.zeros(d_hidden, dtype=torch.long)
    tokens = 0
    for batch in batches:
        y_hat, latents = predict(batch.x, batch.y)
        error = (batch.y - y_hat).square().sum(1)
        sums["error"] += float(error.double().sum())
        sums["cosine"] += float(torch.cosine_similarity(batch.y, y_hat, dim=1).double().sum())
        sums["relative_norm"] += float((y_hat.norm(dim=1) / batch.y.norm(dim=1)).double().sum())
        if per_document is None:
            per_document = _Documents(documents, batch.y.shape[1])
        per_document.add(torch.from_numpy(batch.document).long(), batch.y, error)
        tokens += len(batch.x)
        if latents is not None:
            fired = latents.values > 0
            firings += torch.bincount(latents.indices[fired].long(), minlength=d_hidden).cpu()
            l0.append(torch.bincount(latents.rows()[fired], minlength=len(batch.x)).cpu())
            sums["l1"] += float(latents.values.double().sum())
    assert per_document is not None, "no tokens to evaluate on"
    d_out = per_document.y_sum.shape[1]
    present = per_document.tokens > 0
    fvu, low, high = interval(per_document.fvu, present, settings)
    mse = sums["error"] / tokens / d_out
    metrics = {
        "tokens": float(tokens),
        "documents": float(present.sum()),
        "mse": mse,
        "nmse": mse / output_scale**2,
        "fvu": fvu,
        "fvu_low": low,
        "fvu_high": high,
        "r2": 1 - fvu,
        "cosine": sums["cosine"] / tokens,
        "relative_norm": sums["relative_norm"] / tokens,
    }
    if l0:
        metrics |= _latent_metrics(torch.cat(l0), sums["l1"] / tokens, firings / tokens)
    return Reconstruction(metrics, firings, tokens, per_document.sums())


def _latent_metrics(l0: Tensor, l1: float, frequency: Tensor) -> dict[str, float]:
    """Return what the active latents of each token, and the firing frequency of each latent, come to."""
    low, middle, high = l0.double().quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
    return {
        "l0": float(l0.double().mean()),
        "l0_p5": low,
        "l0_p50": middle,
        "l0_p95": high,
        "l1": l1,
        "dead_fraction": float((frequency == 0).double().mean()),
        "dense_fraction": float((frequency > DENSE).double().mean()),
        "frequent_fraction": float((frequency > FREQUENT).double().mean()),
    }


def density_histogram(result: Reconstruction, bins_per_decade: int = 4) -> list[tuple[float, int]]:
    """Return rows (left edge of log10 firing frequency, latents); those of the first, at -inf, never fired."""
    fired = result.firings[result.firings > 0].double()
    logs = (fired / result.tokens).log10()
    lowest = -int(np.ceil(np.log10(result.tokens)))
    edges = np.linspace(lowest, 0, -lowest * bins_per_decade + 1)
    counts, _ = np.histogram(np.clip(logs.numpy(), lowest, 0), bins=edges)
    dead = int((result.firings == 0).sum())
    return [(-float("inf"), dead), *zip(edges[:-1].tolist(), counts.tolist(), strict=True)]
