"""Nested dictionaries group by group: what each prefix reaches, and how much its new latents repeat."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from transcoders.activations.reader import LabelledBatch
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.latents import NOVEL_COSINE, largest_cosines, removal_effects
from transcoders.evaluation.suite import Evaluation

OF_A_PREFIX = ("l0", "fvu", "cosine", "delta_ce", "loss_recovered", "dead_fraction")
"""Metrics of a prefix that stand beside those of all latents."""


def group_rows(
    model: Transcoder, evaluations: Mapping[str, Evaluation], batches: Iterable[LabelledBatch]
) -> list[dict[str, Any]]:
    """Return a row for each group of latents: the metrics of the prefix that ends with it, then those of the group.

    ``evaluations`` has one for every prefix, under its size. A latent is novel if its removal alone raises the
    error on ``batches`` and its decoder row is no near copy of an earlier group's; the first group has none before.
    """
    effects = removal_effects(model, batches)
    firings = evaluations[str(model.config.d_hidden)].reconstruction.firings
    rows: list[dict[str, Any]] = []
    k, novel = 0, 0
    for number, group in enumerate(model.config.groups, 1):
        k += group.k
        fired = firings[group.start : group.stop] > 0
        useful = effects[group.start : group.stop] > 0
        repetition = None
        if group.start:
            cosines = largest_cosines(model.W_dec[group.start : group.stop], model.W_dec[: group.start]).cpu()
            repetition = float(cosines.mean())
            useful &= cosines < NOVEL_COSINE
        novel += int(useful.sum())
        row: dict[str, Any] = {"group": number, "start": group.start, "stop": group.stop, "k": k}
        row |= evaluations[str(group.stop)].metrics
        row |= {
            "group_dead_fraction": float((~fired).double().mean()),
            "novel_fraction": float(useful.double().mean()),
            "novel_so_far": novel / group.stop,
            "mean_max_cosine_earlier": repetition,
        }
        rows.append(row)
    return rows


def overlap(model: Transcoder) -> pd.DataFrame:
    """Return the mean over each group's decoder rows of the largest cosine to another row of each group."""
    rows = [model.W_dec[group.start : group.stop] for group in model.config.groups]
    table = [
        (i, j, float(largest_cosines(group, other, same=i == j).mean()))
        for i, group in enumerate(rows, 1)
        for j, other in enumerate(rows, 1)
    ]
    return pd.DataFrame(table, columns=["group", "other", "mean_max_cosine"])
