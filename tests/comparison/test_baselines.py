"""What puts a dictionary in its place, on activations of which the answers are known."""

import numpy as np
import pytest
import torch

from transcoders.activations.reader import LabelledBatch
from transcoders.comparison.baselines import fit_baselines
from transcoders.evaluation.reconstruction import reconstruction
from transcoders.evaluation.settings import EvaluateSettings


@pytest.fixture
def train():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator)
    batches = []
    for _ in range(3):
        x = torch.randn(200, 6, generator=generator) + 1
        ids = np.arange(200, dtype=np.int32) % 4
        batches.append(LabelledBatch(x, x @ mixing + 2, ids, ids))
    return batches


def fvu(candidate, batches):
    settings = EvaluateSettings(bootstrap=10)
    result = reconstruction(
        candidate.predict, batches, documents=4, d_hidden=candidate.d_hidden, output_scale=1.0, settings=settings
    )
    return result.metrics["fvu"]


def test_baselines_explain_what_they_should(train):
    fitted = fit_baselines(train, d_hidden=24, k=3)
    assert list(fitted.candidates) == ["mean", "affine", "pca_rank_3", "untrained"]
    scores = {name: fvu(candidate, train) for name, candidate in fitted.candidates.items()}
    assert scores["mean"] == pytest.approx(1)
    assert scores["affine"] < 1e-4  # y is an affine map of x
    y = torch.cat([batch.y for batch in train]).double()
    singular = torch.linalg.svdvals(y - y.mean(0)).square()
    assert scores["pca_rank_3"] == pytest.approx(float(singular[3:].sum() / singular.sum()), rel=1e-3)
    assert 0.1 < scores["untrained"] < 1


def test_pca_has_the_ranks_that_are_asked_for_beside_k(train):
    names = fit_baselines(train, d_hidden=24, k=3, pca_ranks=[5, 3, 1]).candidates
    assert [name for name in names if name.startswith("pca")] == ["pca_rank_1", "pca_rank_3", "pca_rank_5"]


def test_the_untrained_dictionary_is_where_training_starts_in_the_units_of_the_training_tokens(train):
    fitted = fit_baselines(train, d_hidden=24, k=3)
    config = fitted.untrained.config
    assert (config.d_in, config.d_out, config.d_hidden, config.k) == (6, 6, 24, 3)
    y = torch.cat([batch.y for batch in train]).double()
    assert fitted.output_scale == config.output_scale == pytest.approx(float(y.square().mean().sqrt()))
    assert torch.equal(fitted.untrained.W_enc, fit_baselines(train, d_hidden=24, k=3).untrained.W_enc)
    assert fitted.linear is fitted.candidates["affine"].predict
