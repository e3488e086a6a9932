"""Trainers of small cross-layer transcoders, on activations in which features of early layers reach later ones."""

import numpy as np
import torch
from tests_support import make_store
from torch.nn.functional import normalize
from training_support import CPU, DEFAULTS, DEVICE, reader_of, trainer_of

from transcoders.activations.layers import LayersReader, ordered_layers
from transcoders.activations.reader import ordered_batches
from transcoders.activations.store import Store
from transcoders.distributed.ranks import ALONE
from transcoders.training.config import cross_layer_config_of
from transcoders.training.crosslayer import start_of_layers
from transcoders.training.settings import TrainSettings, VariantSettings
from transcoders.training.start import measure

WIDTH = 16
EVERYTHING = np.ones(1, dtype=bool)


def layered_stores(folder, layers: int = 3, tokens: int = 6000) -> list[Store]:
    """Each layer's input announces 12 features, which write to its own and all later outputs."""
    torch.manual_seed(0)
    stores, y = [], torch.zeros(layers, tokens, WIDTH)
    for layer in range(layers):
        active = (torch.rand(tokens, 12) < 0.1) * (1 + torch.rand(tokens, 12))
        x = (3 + layer) * (active @ normalize(torch.randn(12, WIDTH)) + 0.01 * torch.randn(tokens, WIDTH) + 0.5)
        for target in range(layer, layers):
            y[target] += active @ normalize(torch.randn(12, WIDTH))
        stores.append((x, 30 * (layer + 1) * (y[layer] - 0.1)))
    return [Store(make_store(folder / f"{n}.zarr", x, y)) for n, (x, y) in enumerate(stores)]


def cross_layer_trainer(stores, checkpoint, variant=None, ranks=ALONE, device=DEVICE, checkpoint_every=11, **changes):
    variant = VariantSettings(**({"reach": "all"} | (variant or {})))
    settings = TrainSettings(**(DEFAULTS | {"d_hidden": 32} | changes))
    batches = list(ordered_layers(stores, EVERYTHING, 10_000, CPU))
    statistics = [measure(list(ordered_batches(store, EVERYTHING, 10_000, CPU))) for store in stores]
    start = start_of_layers(statistics, batches, 0)
    config = cross_layer_config_of(settings, variant, WIDTH, dict(enumerate(start.statistics)), {})
    reader = LayersReader([reader_of(store, settings, ranks, device) for store in stores])
    return trainer_of(config, settings, variant, reader, start, batches, checkpoint, device, checkpoint_every, ranks)
