import numpy as np
import pandas as pd
import pytest
import torch

from transcoders.activations.reader import LabelledBatch
from transcoders.comparison.contrast import contrast, paired
from transcoders.dictionary.transcoder import Transcoder, TranscoderConfig
from transcoders.evaluation.latents import largest_cosines, pruned, removal_effects
from transcoders.evaluation.settings import EvaluateSettings


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Transcoder(
        TranscoderConfig(d_in=6, d_out=5, d_hidden=20, k=4, input_scale=2.0, output_scale=3.0, skip=True)
    )
    for value in model.parameters():
        value.data.normal_()
    return model.requires_grad_(False)


def batches():
    torch.manual_seed(1)
    ids = np.zeros(30, dtype=np.int32)
    return [LabelledBatch(torch.randn(30, 6), torch.randn(30, 5), ids, ids) for _ in range(2)]


def test_removal_effects_equal_removing_each_latent(model):
    def error(z):
        y_hat = z @ model.W_dec + model.b_dec + x / 2 @ model.W_skip.T
        return float((y / 3 - y_hat).double().square().sum())

    x, y = torch.cat([b.x for b in batches()]), torch.cat([b.y for b in batches()])
    z = model.encode(x).dense()
    found = removal_effects(model, batches())
    for i in range(20):
        without = z.clone()
        without[:, i] = 0
        expected = (error(without) - error(z)) / float((y / 3).double().square().sum())
        assert float(found[i]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_largest_cosines_ignore_length_and_the_row_itself(model):
    rows = torch.tensor([[2.0, 0], [0, 3.0], [1.0, 1.0], [-1.0, 0]])
    assert largest_cosines(rows, rows, same=True).tolist() == pytest.approx(
        [0.5**0.5, 0.5**0.5, 0.5**0.5, 0.0], abs=1e-6
    )
    assert largest_cosines(rows[:1], rows).tolist() == pytest.approx([1.0])
    many = torch.randn(2100, 4)
    assert float(largest_cosines(many, many, same=True).max()) < 1 - 1e-7


def test_pruning_keeps_the_most_important_latents_as_they_are(model):
    importance = torch.arange(20.0)
    small = pruned(model, importance, 8, 3)
    x = torch.randn(10, 6)
    assert torch.equal(small.W_dec, model.W_dec[12:])
    info = small.forward_with_info(x)
    assert info.l0.max() <= 3
    assert torch.equal(pruned(model, importance, 20, 4)(x), model(x))


def table(seed, excess=0.0):
    rng = np.random.default_rng(seed)
    documents = np.random.default_rng(0).uniform(1, 2, 50)
    frame = pd.DataFrame({"tokens": 10.0, "error": documents * 0.3 + excess, "variation": documents + 1})
    frame["loss_tokens"], frame["ce_clean"], frame["ce_zero"] = 10.0, 30 + rng.normal(size=50), 40.0
    frame["ce_replaced"] = frame["ce_clean"] + 2 + excess
    frame.loc[3] = 0.0
    return frame


def test_a_contrast_is_the_difference_of_ratios_with_an_interval_that_holds_it():
    settings = EvaluateSettings(bootstrap=300)
    ours, theirs = [table(1, 0.1), table(2, 0.1)], [table(1), table(2)]
    found = contrast(ours, theirs, settings)
    fvu = [np.mean([t["error"].sum() / t["variation"].sum() for t in side]) for side in (ours, theirs)]
    difference, low, high = found["fvu"]
    assert difference == pytest.approx(fvu[0] - fvu[1])
    assert 0 < low < difference < high
    assert found["delta_ce"][0] == pytest.approx(0.01)
    assert found["loss_recovered"][1] <= found["loss_recovered"][0] <= found["loss_recovered"][2] < 0
    assert contrast(ours, ours[::-1], settings)["fvu"][0] == pytest.approx(0, abs=1e-12)


def test_paired_differences_have_students_interval():
    mean, low, high = paired(pd.Series([1.0, 2.0, 4.0]), pd.Series([0.5, 1.0, 2.0]))
    differences = np.array([0.5, 1.0, 2.0])
    half = 4.302653 * differences.std(ddof=1) / 3**0.5
    assert (mean, low, high) == pytest.approx(
        (differences.mean(), differences.mean() - half, differences.mean() + half)
    )
    assert np.isnan(paired(pd.Series([1.0]), pd.Series([2.0]))[1])
