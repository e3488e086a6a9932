"""What a dictionary makes of word classes: parent latents, how general they are, and whose tokens they lose.

Of each half of a class's words the parent is the latent whose firing tells the words of that half best. On the other
half *generality* is its F1: low where the class is split into latents of a few words each. *Absorption* of a word that
has a latent of its own is the parent's recall on words without one, less its recall on this word, times the share of
the probe's projection that the word's own latent carries.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from transcoders.classes.latents import Activity, f1
from transcoders.classes.probes import Half, Outputs, directions, half_of, mean_auroc, random_class
from transcoders.classes.settings import ClassSettings
from transcoders.classes.words import Words

OWN = 0.5
"""F1 from which on a latent is a single word's."""
MEASURED = ["class", "words", "tokens", "auroc", "auroc_by_chance", "generality", "generality_by_chance", "own"]
MEASURED += ["absorption"]


class ProbedClass(NamedTuple):
    """Hold the halves of a class and their probes, and halves of classes of random words beside them."""

    halves: list[Half]
    probes: Float[Tensor, "halves d_out"]
    auroc: float
    by_chance: list[Half]
    auroc_by_chance: float


def probe_classes(
    classes: Mapping[str, NDArray[np.int64]],
    words: Words,
    outputs: Outputs,
    settings: ClassSettings,
    rng: np.random.Generator,
) -> dict[str, ProbedClass]:
    """Fit and judge probes of each class, and of random words as frequent as its own, anew for each half."""
    result = {}
    for name, members in tqdm(classes.items(), desc="probes", unit="class"):
        halves = [half_of(members, rng) for _ in range(settings.halves)]
        by_chance = [half_of(random_class(members, words.counts, rng), rng) for _ in range(settings.halves)]
        probes, of_chance = (directions(outputs, drawn, words.counts) for drawn in (halves, by_chance))
        auroc, auroc_by_chance = mean_auroc(outputs, halves, probes), mean_auroc(outputs, by_chance, of_chance)
        result[name] = ProbedClass(halves, probes, auroc, by_chance, auroc_by_chance)
    return result


def measure(
    active: Activity, decoder: Float[Tensor, "d_hidden d_out"], classes: Mapping[str, ProbedClass], words: Words
) -> pd.DataFrame:
    """Return a row for each class, with means over its halves.

    ``absorption`` is NaN where no word has a latent of its own, or all have; ``own`` is the share that has one.
    """
    rows = []
    for name, probed in classes.items():
        general, by_chance = (
            [generality(active, half, words.counts) for half in drawn] for drawn in (probed.halves, probed.by_chance)
        )
        absorbed = [
            absorption(active, decoder, parent, half, probe, words.counts)
            for (parent, _), half, probe in zip(general, probed.halves, probed.probes, strict=True)
        ]
        known = [value for value, _ in absorbed if np.isfinite(value)]
        members = probed.halves[0].members
        rows.append(
            {
                "class": name,
                "words": len(members),
                "tokens": int(words.counts[members].sum()),
                "auroc": probed.auroc,
                "auroc_by_chance": probed.auroc_by_chance,
                "generality": float(np.mean([score for _, score in general])),
                "generality_by_chance": float(np.mean([score for _, score in by_chance])),
                "own": float(np.mean([own for _, own in absorbed])),
                "absorption": float(np.mean(known)) if known else float("nan"),
            }
        )
    return pd.DataFrame(rows, columns=MEASURED)


def generality(active: Activity, half: Half, counts: NDArray[np.int64]) -> tuple[int, float]:
    """Return the latent with the best F1 on the words to learn from, and its F1 on those to judge on.

    Tokens of the other half never count.
    """
    outside = active.fired - active.fires[half.members].sum(0)
    of_halves = []
    for words in (half.learn, half.judge):
        hits = active.fires[words].sum(0)
        of_halves.append(f1(hits, float(counts[words].sum()), outside + hits))
    parent = int(of_halves[0].argmax())
    return parent, float(of_halves[1][parent])


def absorption(
    active: Activity,
    decoder: Float[Tensor, "d_hidden d_out"],
    parent: int,
    half: Half,
    probe: Float[Tensor, "d_out"],
    counts: NDArray[np.int64],
) -> tuple[float, float]:
    """Return the mean absorption of words to judge on that have a latent of their own, and their share.

    What a word's own latent carries is its part of the distance, along the probe, of the word's mean reconstruction
    from that of all tokens.
    """
    words = half.judge
    of_word = torch.from_numpy(counts[words])[:, None].float()
    alone = f1(active.fires[words], of_word, active.fired)
    alone[:, parent] = 0
    best = alone.max(1)
    has_own = (best.values >= OWN).numpy()
    if has_own.all() or not has_own.any():
        return float("nan"), float(has_own.mean())
    recall = (active.fires[words, parent] / of_word[:, 0]).numpy()
    apart = (active.total[words] / of_word - active.mean) * (decoder @ probe)
    carried = apart[torch.arange(len(words)), best.indices] / apart.sum(1).clamp(min=torch.finfo(apart.dtype).tiny)
    absorbed = (recall[~has_own].mean() - recall) * carried.clamp(0, 1).numpy()
    return float(absorbed[has_own].mean()), float(has_own.mean())
