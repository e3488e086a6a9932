"""Dictionaries of which it is known what is to be measured: they are measured beside each trained one."""

import numpy as np
import torch
from torch.nn.functional import normalize

from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.transcoder import Transcoder
from transcoders.planted.families import PARENT, Families
from transcoders.planted.kinds import Kind
from transcoders.planted.measure import Tokens, measure
from transcoders.training.start import Start, initialise_

ROWS = 16_384
"""Tokens with nothing but features in them that the dictionary made by hand is measured on."""
BORDER = 0.5
"""Half of a typical activation: below it a latent made by hand is silent."""


def controls(start: Start, config: TranscoderConfig, families: Families) -> dict[str, float]:
    """Return what is measured of a dictionary that absorbs everything, and of an untrained one.

    Made by hand: absorption 1 and contamination 1 / sqrt 2. Untrained: no parent is found, but by chance.
    """
    by_hand = measure(absorbing(families), iter([feature_tokens(families, ROWS)]), families)
    nested = by_hand[by_hand["kind"] == Kind.NESTED]
    untrained = Transcoder(config)
    initialise_(untrained, start)
    untrained_table = measure(untrained, iter(()), families)
    return {
        "made_by_hand.absorption": float(nested["absorption"].mean()),
        "made_by_hand.contamination": float(nested["contamination"].mean()),
        "untrained.found": float(untrained_table["found"].mean()),
    }


def absorbing(families: Families) -> Transcoder:
    """Return a dictionary whose parents are silent beside a child, and whose children's rows point to both."""
    return made_by_hand(families, absorbed=1.0)


def made_by_hand(families: Families, absorbed: float = 0.0, hedged: float = 0.0) -> Transcoder:
    """Return a dictionary with a latent for each member, on tokens that hold nothing but features.

    The share ``absorbed`` of a parent is in its children's rows, and silences it beside them; ``hedged`` times the sum
    of its children is in the parent's row.
    """
    x, y = (normalize(part, dim=-1) for part in (families.x, families.y))
    W_enc, W_dec = x.clone(), y.clone()
    W_enc[:, PARENT] -= 2 * absorbed * x[:, PARENT + 1 :].sum(1)
    W_dec[:, PARENT + 1 :] += absorbed * y[:, PARENT, None]
    W_dec[:, PARENT] += hedged * y[:, PARENT + 1 :].sum(1)
    model = Transcoder(
        TranscoderConfig(d_in=x.shape[2], d_out=y.shape[2], d_hidden=W_enc[..., 0].numel(), k=1, encoder="relu")
    )
    model.W_enc.data, model.W_dec.data = W_enc.flatten(0, 1), normalize(W_dec, dim=-1).flatten(0, 1)
    model.b_enc.data.fill_(-BORDER)
    return model.requires_grad_(False)


def feature_tokens(families: Families, rows: int) -> Tokens:
    """Return ``rows`` tokens that hold nothing but features of unit length."""
    firings = families.firings(np.arange(rows))
    fires = torch.zeros(rows, len(families.rate), families.members, dtype=torch.bool)
    fires[firings.row, firings.family, firings.member] = True
    written = firings.written(normalize(families.x, dim=-1))
    x = torch.zeros(rows, families.x.shape[2]).index_add(0, firings.row, written)
    return Tokens(x, fires[:, :, PARENT], fires[:, :, PARENT + 1 :].any(2))
