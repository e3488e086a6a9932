"""A nested dictionary group by group."""

import numpy as np
import pytest
import torch

from transcoders.activations.reader import LabelledBatch
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.groups import group_rows, overlap
from transcoders.evaluation.latents import removal_effects
from transcoders.evaluation.reconstruction import Reconstruction
from transcoders.evaluation.suite import Evaluation


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Transcoder(TranscoderConfig(d_in=6, d_out=6, d_hidden=9, k=3, prefixes=(3, 9), prefix_k=(1, 3)))
    for value in model.parameters():
        value.data.normal_()
    model.W_dec.data[4] = 2 * model.W_dec.data[0]  # a latent of the second group that repeats one of the first
    return model.requires_grad_(False)


def batches():
    torch.manual_seed(1)
    ids = np.zeros(50, dtype=np.int32)
    return [LabelledBatch(torch.randn(50, 6), torch.randn(50, 6), ids, ids)]


def evaluations():
    firings = torch.tensor([1, 0, 3, 4, 5, 0, 0, 8, 9])
    complete = Evaluation({"fvu": 0.2, "l0": 3.0}, Reconstruction({}, firings, 50, {}), {})
    return {"3": Evaluation({"fvu": 0.5, "l0": 1.0}, Reconstruction({}, firings[:3], 50, {}), {}), "9": complete}


def test_a_row_has_the_metrics_of_its_prefix_and_those_of_the_latents_it_adds(model):
    first, second = group_rows(model, evaluations(), batches())
    assert (first["group"], first["start"], first["stop"], first["k"], first["fvu"]) == (1, 0, 3, 1, 0.5)
    assert (second["group"], second["start"], second["stop"], second["k"], second["fvu"]) == (2, 3, 9, 3, 0.2)
    assert first["group_dead_fraction"] == pytest.approx(1 / 3)
    assert second["group_dead_fraction"] == pytest.approx(2 / 6)
    assert first["mean_max_cosine_earlier"] is None
    cosines = torch.cosine_similarity(model.W_dec[3:, None], model.W_dec[None, :3], dim=2).amax(1)
    assert second["mean_max_cosine_earlier"] == pytest.approx(float(cosines.mean()), abs=1e-6)


def test_a_latent_is_novel_if_it_helps_and_repeats_no_earlier_one(model):
    helps = removal_effects(model, batches()) > 0
    cosines = torch.cosine_similarity(model.W_dec[3:, None], model.W_dec[None, :3], dim=2).amax(1)
    novel = helps[3:] & (cosines < 0.5)
    assert not novel[1]
    first, second = group_rows(model, evaluations(), batches())
    assert first["novel_fraction"] == float(helps[:3].double().mean())
    assert second["novel_fraction"] == float(novel.double().mean())
    assert second["novel_so_far"] == pytest.approx(int(helps[:3].sum() + novel.sum()) / 9)


def test_overlap_compares_every_group_with_every_group(model):
    table = overlap(model).set_index(["group", "other"])["mean_max_cosine"]
    assert sorted(table.index) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert table[1, 2] > table[1, 1]  # row 0 has a copy in the second group, and none in its own
