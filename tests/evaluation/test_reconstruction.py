import numpy as np
import pytest
import torch

from transcoders.activations.reader import LabelledBatch
from transcoders.evaluation.bootstrap import interval
from transcoders.evaluation.predictors import affine, constant, moments, pca
from transcoders.evaluation.reconstruction import Prediction, density_histogram, reconstruction
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.kernels import SparseLatents

SETTINGS = EvaluateSettings(bootstrap=200)


def batch(x, y, document):
    return LabelledBatch(x, y, np.asarray(document), np.zeros(len(x), dtype=np.int32))


def measure(predict, batches, d_hidden=0, scale=1.0, documents=3):
    return reconstruction(
        predict, batches, documents=documents, d_hidden=d_hidden, output_scale=scale, settings=SETTINGS
    )


def test_a_case_computed_by_hand():
    """y = (3, 0), (0, 4), (3, 4), (0, 0); predicted (3, 0), (0, 2), (0, 0), (0, 0)."""
    y = torch.tensor([[3.0, 0.0], [0.0, 4.0], [3.0, 4.0], [1.0, 0.0]])
    y_hat = torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 4.0], [0.0, 1.0]])
    predicted = {float(row.sum()): i for i, row in enumerate(y)}
    latents = SparseLatents(
        torch.tensor([0, 2, 4, 6, 8]),
        torch.tensor([0, 1, 0, 2, 0, 1, 0, 3]),
        torch.tensor([1.0, 2.0, 1.0, 0.0, 1.0, 1.0, 4.0, 0.0]),
        5,
    )
    assert len(predicted) == 4
    result = measure(lambda x, y: Prediction(y_hat, latents), [batch(y, y, [0, 0, 1, 1])], 5, scale=2.0)
    m = result.metrics
    errors = 0 + 4 + 9 + 2
    mean = y.mean(0)
    assert m["mse"] == pytest.approx(errors / 8)
    assert m["nmse"] == pytest.approx(errors / 8 / 4)
    assert m["fvu"] == pytest.approx(errors / float((y - mean).square().sum()))
    assert m["r2"] == pytest.approx(1 - m["fvu"])
    assert m["cosine"] == pytest.approx((1 + 1 + 4 / 5 + 0) / 4)
    assert m["relative_norm"] == pytest.approx((1 + 0.5 + 4 / 5 + 1) / 4)
    assert m["l0"] == pytest.approx((2 + 1 + 2 + 1) / 4)
    assert m["l1"] == pytest.approx((3 + 1 + 2 + 4) / 4)
    assert m["dead_fraction"] == pytest.approx(3 / 5)
    assert m["dense_fraction"] == pytest.approx(2 / 5)
    assert m["documents"] == 2
    assert result.firings.tolist() == [4, 2, 0, 0, 0]


def test_fvu_is_one_ratio_over_the_whole_set_however_it_is_batched():
    torch.manual_seed(0)
    y, document = torch.randn(90, 4) + 3, np.arange(90) % 3

    def predict(x, y):
        return Prediction(0.9 * y, None)

    whole = measure(predict, [batch(y, y, document)]).metrics
    pieces = zip(y.split(7), np.split(document, range(7, 90, 7)), strict=True)
    parts = measure(predict, [batch(p, p, d) for p, d in pieces])
    assert parts.metrics["fvu"] == pytest.approx(whole["fvu"])
    assert parts.metrics["fvu_low"] == pytest.approx(whole["fvu_low"])
    exact = float((0.1 * y).square().sum() / (y - y.mean(0)).square().sum())
    assert whole["fvu"] == pytest.approx(exact)
    assert whole["fvu_low"] <= exact <= whole["fvu_high"]


def test_the_mean_has_fvu_one_and_perfection_zero():
    y = torch.randn(50, 4)
    document = np.arange(50) % 3
    assert measure(constant(y.mean(0)), [batch(y, y, document)]).metrics["fvu"] == pytest.approx(1.0)
    assert measure(lambda x, y: Prediction(y, None), [batch(y, y, document)]).metrics["fvu"] == 0


def test_the_density_histogram_counts_every_latent_once():
    latents = SparseLatents(torch.tensor([0, 1, 2]), torch.tensor([4, 4]), torch.ones(2), 9)
    y = torch.randn(2, 3)
    rows = density_histogram(measure(lambda x, y: Prediction(y, latents), [batch(y, y, [0, 1])], 9))
    assert rows[0] == (-float("inf"), 8)
    assert sum(count for _, count in rows) == 9


def test_baselines_do_what_they_say():
    torch.manual_seed(0)
    x = torch.randn(500, 6) + 2
    y = x @ torch.randn(6, 4) + torch.randn(4)
    batches = [batch(x[:200], y[:200], np.zeros(200)), batch(x[200:], y[200:], np.zeros(300))]
    m = moments(batches)
    assert torch.allclose(affine(m)(x, y).y_hat, y, atol=1e-2)
    errors = [float((pca(m, rank)(x, y).y_hat - y).square().sum()) for rank in (1, 2, 4)]
    singular = torch.linalg.svdvals((y - y.mean(0)).double())
    assert errors[0] == pytest.approx(float(singular[1:].square().sum()), rel=1e-3)
    assert errors[1] == pytest.approx(float(singular[2:].square().sum()), rel=1e-3)
    assert errors[2] < 1e-4


def test_intervals_cover_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        values = torch.from_numpy(rng.normal(size=40))
        settings = EvaluateSettings(bootstrap=300, seed=trial)
        present = torch.ones(40, dtype=torch.bool)
        _, low, high = interval(lambda w, v=values: np.asarray((w @ v) / w.sum(1)), present, settings)
        hits += low <= 0 <= high
    assert 0.86 < hits / 200 < 0.99
