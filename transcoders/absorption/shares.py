"""Who carries the projection of an MLP's output on a category's probe: main latents, absorbers or the skip path.

Definitions: arXiv 2503.09532, appendix (absorption fraction, full absorption), here in the space of MLP
outputs, where decoder rows live.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from transcoders.absorption.dictionary import Dictionary
from transcoders.absorption.settings import AbsorptionSettings
from transcoders.absorption.words import Probes, Task

SILENT = 1e-8


class Shares(NamedTuple):
    """Hold, for each word, the share of the probe's projection that is absorbed, and that others carry."""

    absorption: NDArray[np.float64]
    full: NDArray[np.bool_]
    """Whether the word is fully absorbed."""
    main: NDArray[np.float64]
    skip: NDArray[np.float64]


class Along(NamedTuple):
    """Hold what decoder rows d_i and words have along one probe p."""

    rows: NDArray[np.float64]
    """<d_i, p> of each latent."""
    cosines: NDArray[np.float64]
    """cos(d_i, p) of each latent."""
    total: NDArray[np.float64]
    """Of each word, as ``of_words`` gives it; so is ``skip``."""
    skip: NDArray[np.float64]


def of_words(dictionary: Dictionary, task: Task, probes: Probes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what y of each word projects on each probe beyond the constants, and what the skip path does.

    Constants are b_dec and the skip path's mean over the training words: no latent is needed for them.
    Both arrays are [words, categories].
    """
    p = probes.direction.double()
    bias = torch.as_tensor(dictionary.b_dec).double().cpu()
    total = (task.y.double() - bias) @ p.T
    skip = torch.zeros_like(total)
    if dictionary.skip is not None:
        skip = dictionary.skip(task.x.to(dictionary.W_dec.device)).double().cpu() @ p.T
        constant = skip[~task.test].mean(0)
        total, skip = total - constant, skip - constant
    return total.numpy(), skip.numpy()


def carried(values: NDArray[np.float64], main: NDArray[np.int64], along: Along, settings: AbsorptionSettings) -> Shares:
    """Return who carries the projection of words on which a probe p is right.

    ``values`` [words, d_hidden] are the words' latents a, ``main`` the category's main latents. Absorbers are the
    ``settings.absorbers`` largest contributors a_i <d_i, p> that are not main and have
    cos(d_i, p) >= ``absorber_cosine``. Where main latents carry all of the projection, or absorbers carry less
    than ``least_share`` of it, nothing is absorbed; else the share is S_abs / (S_abs + S_main), S_abs being at
    most what the main latents leave. A word is fully absorbed if no main latent fires, and the largest
    contributor is an absorber that alone carries ``least_share``.
    """
    total = along.total
    parts = values * along.rows
    from_main = parts[:, main].sum(1)
    others = np.where(along.cosines >= settings.absorber_cosine, parts, 0)
    others[:, main] = 0
    count = min(settings.absorbers, others.shape[1])
    absorbed = np.partition(others, -count, axis=1)[:, -count:].clip(min=0).sum(1)
    happens = (total > 0) & (from_main < total) & (absorbed >= settings.least_share * total)
    capped = np.minimum(absorbed, total - from_main)
    fraction = np.where(from_main <= 0, 1.0, capped / np.where(happens, capped + from_main, 1))
    silent = (values[:, main] <= SILENT).all(1)
    aligned = along.cosines[parts.argmax(1)] >= settings.absorber_cosine
    full = silent & aligned & (total > 0) & (parts.max(1) >= settings.least_share * total)
    return Shares(np.where(happens, fraction, 0.0), full, share_of(from_main, total), share_of(along.skip, total))


def share_of(part: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``part`` of ``total``, within 0 and 1; 0 where there is nothing to share."""
    return np.where(total > 0, np.clip(part / np.where(total > 0, total, 1), 0, 1), 0.0)
