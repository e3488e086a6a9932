import numpy as np
import pytest
import torch

from transcoders.activations.reader import LabelledBatch
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.latents import largest_cosines, removal_effects


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
