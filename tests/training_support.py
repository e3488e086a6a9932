"""Trainers on a small planted dictionary, on CUDA where there is a device."""

import numpy as np
import torch

from transcoders.activations.reader import Batch, ShuffledReader, ordered_batches
from transcoders.dictionary.config import TranscoderConfig
from transcoders.distributed.ranks import ALONE
from transcoders.training.settings import TrainSettings, VariantSettings
from transcoders.training.start import Start, measure, sample_of
from transcoders.training.trainer import Job, Trainer

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EVERYTHING = np.ones(1, dtype=bool)
DEFAULTS = {
    "d_hidden": 64,
    "k": 4,
    "epochs": 3,
    "batch_size": 200,
    "learning_rate": 3e-3,
    "log_every": 7,
    "validate_every": 15,
    "dead_after_tokens": 1000,
}


def trainer(store, checkpoint, variant=None, ranks=ALONE, device=DEVICE, checkpoint_every=11, **changes):
    variant = VariantSettings(**(variant or {}))
    settings = TrainSettings(**(DEFAULTS | changes))
    batches = list(ordered_batches(store, EVERYTHING, 10_000, CPU))
    statistics = measure(batches)
    config = TranscoderConfig(
        encoder=variant.encoder,
        skip=variant.skip,
        d_in=16,
        d_out=16,
        d_hidden=64,
        k=settings.k,
        prefixes=variant.sizes(64),
        prefix_k=variant.ks(settings.k),
        input_scale=statistics.x_scale,
        output_scale=statistics.y_scale,
    )
    reader, start = reader_of(store, settings, ranks, device), Start(statistics, sample_of(batches), 0)
    return trainer_of(config, settings, variant, reader, start, batches, checkpoint, device, checkpoint_every, ranks)


def reader_of(store, settings, ranks, device):
    share = ranks.data.share(settings.batch_size)
    sizes = {"batch_size": settings.batch_size, "buffer_tokens": 4096}
    return ShuffledReader(store, EVERYTHING, **sizes, seed=0, device=device, share=share)


def trainer_of(config, settings, variant, reader, start, batches, checkpoint, device, checkpoint_every, ranks):
    """Return a trainer that validates on the same ``batches``."""
    held_out = [Batch(b.x.to(device), b.y.to(device)) for b in batches]
    return Trainer(Job(config, settings, variant, reader, start, held_out, checkpoint, device, checkpoint_every, ranks))


def weights_of(t):
    return {name: value.cpu().clone() for name, value in t.model.state_dict().items()}


def run(t):
    """Train to the end and clean up."""
    result = t.train()
    t.forget()
    return result
