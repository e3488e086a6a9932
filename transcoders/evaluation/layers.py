"""A cross-layer transcoder on held-out tokens: each layer's reconstruction and latents, and means over the layers."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from transcoders.activations.layers import LayersBatch
from transcoders.activations.reader import LabelledBatch
from transcoders.dictionary.crosslayer.transcoder import CrossLayerTranscoder
from transcoders.evaluation.predictors import affine, constant, moments, pca
from transcoders.evaluation.reconstruction import Prediction, Predictor, reconstruction
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.kernels import SparseLatents

OF_A_BASELINE = ("nmse", "fvu", "fvu_low", "fvu_high", "cosine")
OF_A_LAYER = (*OF_A_BASELINE, "l0", "dead_fraction", "dense_fraction")
AT_ONCE = 1024
"""Tokens whose outputs of all layers are predicted at a time."""


class Predicted(NamedTuple):
    """Hold tokens with the true and the predicted outputs of all layers, raw, and each layer's latents."""

    y: Float[Tensor, "tokens layers*d"]
    y_hat: Float[Tensor, "tokens layers*d"]
    latents: list[SparseLatents]
    document: NDArray[Any]


@torch.inference_mode()
def predict_layers(model: CrossLayerTranscoder, batches: Iterable[LayersBatch]) -> list[Predicted]:
    """Return what ``model`` predicts for all tokens of ``batches``."""
    result = []
    for batch in batches:
        for start in range(0, len(batch.x), AT_ONCE):
            here = slice(start, start + AT_ONCE)
            x, y = batch.x[here], batch.y[here]
            normalised, _ = model.normalised(x, y)
            latents = model.encode_sources(normalised)
            y_hat = model.decode_sources(latents, normalised) * model.output_scales
            result.append(Predicted(y, y_hat, latents, batch.document[here]))
    return result


def rows_of_layers(
    model: CrossLayerTranscoder, predicted: list[Predicted], documents: int, settings: EvaluateSettings
) -> pd.DataFrame:
    """Return a row of metrics for each layer (docs/metrics.md), ``documents`` being the number of document ids.

    ``later_share`` is the share of its latents' squared decoder norm that goes to layers after their own; the mean over
    those that fired.
    """
    rows, later = [], model.share_of_later_layers()
    for number, layer in enumerate(model.config.layers):
        result = reconstruction(
            _given([part.latents[number] for part in predicted]),
            _of_layer(predicted, number, model.config.d_model),
            documents=documents,
            d_hidden=model.config.d_hidden,
            output_scale=model.config.output_scales[number],
            settings=settings,
        )
        metrics = {name: result.metrics[name] for name in OF_A_LAYER}
        fired = result.firings > 0
        share = float(later[number].cpu()[fired].mean()) if fired.any() else float("nan")
        rows.append({"layer": layer, **metrics, "later_share": share})
    return pd.DataFrame(rows)


def means_of_layers(rows: pd.DataFrame) -> dict[str, float]:
    """Return the means over layers of what the layers' rows hold, and L0 of all layers together."""
    means = {name: float(rows[name].mean()) for name in ("nmse", "fvu", "cosine", "l0", "dead_fraction", "later_share")}
    return {"layers": float(len(rows)), **means, "total_l0": float(rows["l0"].sum())}


def _given(latents: Iterable[SparseLatents]) -> Predictor:
    """Return a predictor that is given its predictions in the place of inputs, made by ``latents`` of each batch."""
    of_batches = iter(latents)
    return lambda y_hat, y: Prediction(y_hat, next(of_batches))


def _of_layer(predicted: list[Predicted], number: int, d: int) -> Iterator[LabelledBatch]:
    """Yield the tokens with one layer's predicted outputs in the place of inputs."""
    columns = slice(number * d, (number + 1) * d)
    for part in predicted:
        yield LabelledBatch(part.y_hat[:, columns], part.y[:, columns], part.document, part.document)


def baselines_of_layer(
    train: list[LabelledBatch],
    test: list[LabelledBatch],
    *,
    documents: int,
    k: int,
    output_scale: float,
    settings: EvaluateSettings,
) -> pd.DataFrame:
    """Return a row for the mean output, the affine map and PCA of rank ``k`` of a layer, fitted to ``train``."""
    fitted = moments(train)
    predictors = {"mean": constant(fitted.y_mean.float()), "affine": affine(fitted), f"pca_rank_{k}": pca(fitted, k)}
    rows = []
    for name, predict in predictors.items():
        result = reconstruction(
            predict, test, documents=documents, d_hidden=0, output_scale=output_scale, settings=settings
        )
        rows.append({"name": name, **{key: result.metrics[key] for key in OF_A_BASELINE}})
    return pd.DataFrame(rows)
