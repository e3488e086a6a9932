"""Plain dictionaries cut to a prefix's size."""

import numpy as np
import pytest
import torch

from transcoders.activations.reader import LabelledBatch
from transcoders.comparison.pruning import prune_to_prefixes, pruned
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.latents import removal_effects
from transcoders.training.settings import VariantSettings


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Transcoder(
        TranscoderConfig(d_in=6, d_out=5, d_hidden=20, k=4, input_scale=2.0, output_scale=3.0, skip=True)
    )
    for value in model.parameters():
        value.data.normal_()
    return model.requires_grad_(False)


def test_pruning_keeps_the_most_important_latents_as_they_are(model):
    importance = torch.arange(20.0)
    small = pruned(model, importance, 8, 3)
    x = torch.randn(10, 6)
    assert torch.equal(small.W_dec, model.W_dec[12:])
    info = small.forward_with_info(x)
    assert info.l0.max() <= 3
    assert torch.equal(pruned(model, importance, 20, 4)(x), model(x))


def test_a_plain_dictionary_is_cut_to_the_prefixes_of_all_nested_variants(model):
    torch.manual_seed(1)
    ids = np.zeros(30, dtype=np.int32)
    train = [LabelledBatch(torch.randn(30, 6), torch.randn(30, 5), ids, ids) for _ in range(6)]
    nested = [
        VariantSettings(prefixes=(0.25, 1.0), prefix_k=(0.5, 1.0)),
        VariantSettings(prefixes=(0.25, 0.5, 1.0), prefix_k=(0.5, 0.75, 1.0)),
    ]
    small = prune_to_prefixes(model, [VariantSettings(), *nested], train)
    assert {size: cut.config.k for size, cut in small.items()} == {5: 2, 10: 3}
    importance = removal_effects(model, train[:4])  # not of more batches
    assert torch.equal(small[5].W_dec, pruned(model, importance, 5, 2).W_dec)
    assert prune_to_prefixes(model, [VariantSettings()], train) == {}
