"""What puts a dictionary in its place: the mean output, the affine map, PCA, and the untrained dictionary."""

from collections.abc import Sequence
from typing import NamedTuple

from transcoders.activations.reader import LabelledBatch
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.predictors import affine, constant, moments, pca, transcoder_predictor
from transcoders.evaluation.reconstruction import Predictor
from transcoders.evaluation.suite import Candidate
from transcoders.training.start import Start, initialise_, measure, sample_of


class Baselines(NamedTuple):
    """Hold the baselines of a layer, fitted to training tokens."""

    candidates: dict[str, Candidate]
    linear: Predictor
    untrained: Transcoder
    output_scale: float
    """Of the training tokens: the unit of NMSE."""


def fit_baselines(train: list[LabelledBatch], d_hidden: int, k: int, pca_ranks: Sequence[int] = ()) -> Baselines:
    """Fit every baseline to ``train``; the untrained dictionary has ``d_hidden`` latents, of which k are active.

    PCA has rank k, and each of ``pca_ranks``.
    """
    statistics = measure(train)
    second_moments = moments(train)
    untrained = untrained_dictionary(train, d_hidden, k)
    linear = affine(second_moments)
    candidates = {
        "mean": Candidate(constant(second_moments.y_mean.float()), 0),
        "affine": Candidate(linear, 0),
        **{f"pca_rank_{rank}": Candidate(pca(second_moments, rank), 0) for rank in sorted({k, *pca_ranks})},
        "untrained": Candidate(transcoder_predictor(untrained), d_hidden),
    }
    return Baselines(candidates, linear, untrained, statistics.y_scale)


def untrained_dictionary(train: list[LabelledBatch], d_hidden: int, k: int) -> Transcoder:
    """Return the dictionary that training would start from, on the device of ``train``."""
    statistics, d_model = measure(train), train[0].x.shape[1]
    config = TranscoderConfig(
        d_in=d_model,
        d_out=d_model,
        d_hidden=d_hidden,
        k=k,
        input_scale=statistics.x_scale,
        output_scale=statistics.y_scale,
    )
    model = Transcoder(config)
    initialise_(model, Start(statistics, sample_of(train), seed=0))
    return model.to(train[0].x.device).requires_grad_(False)
