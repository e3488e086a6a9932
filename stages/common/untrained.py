"""The dictionary that training would start from: what any figure of a trained one is worth less of."""

import torch

from stages.common.inputs import MOMENT_TOKENS, Inputs
from transcoders.comparison.baselines import untrained_dictionary
from transcoders.dictionary.transcoder import Transcoder
from transcoders.training.settings import DHidden, latents_of


def untrained_of(inputs: Inputs, d_hidden: DHidden, k: int, device: torch.device) -> Transcoder:
    """Return the untrained dictionary of a layer, of so many latents of which ``k`` are active."""
    train = inputs.train_batches(MOMENT_TOKENS, device)
    return untrained_dictionary(train, latents_of(d_hidden, inputs.store.d_model), k)
