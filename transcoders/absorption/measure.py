"""Absorption and splitting: do the latents for "begins with s" fire on all words that do?

Main latents and splitting are in ``main_latents``, absorption on a word in ``shares``; here is the whole task
with its intervals over words.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from transcoders.absorption.dictionary import Dictionary
from transcoders.absorption.main_latents import main_count, sparse_probes, weighted_f1
from transcoders.absorption.settings import LEAST_MAIN_F1, AbsorptionSettings
from transcoders.absorption.shares import Along, Shares, carried, of_words, share_of
from transcoders.absorption.words import Probes, Task
from transcoders.core.errors import UserError
from transcoders.evaluation.bootstrap import Statistic, interval
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.kernels import SparseLatents

SHARES = ("mean_absorption", "full_absorption", "main_share", "skip_share")
"""Metrics that are means of the fields of ``Shares``, in this order."""


class Absorption(NamedTuple):
    """Hold the metrics with intervals over test words, and one row for each category that has a probe."""

    metrics: dict[str, float]
    categories: pd.DataFrame


class Category(NamedTuple):
    """Hold what was measured on one category."""

    main: NDArray[np.int64]
    f1: float
    """Of the probe on the main latents, on test words."""
    predictions: NDArray[np.bool_]
    """[words, k]: of the probes on the first 1, 2, ... latents."""
    true: NDArray[np.bool_]
    judged: NDArray[np.int64]
    """Test words that the probe on y gets right: those that absorption is measured on."""
    shares: Shares

    def row(self) -> dict[str, object]:
        """Return the category's row of the table."""
        means = (float(np.mean(values)) if len(values) else 0.0 for values in self.shares)
        return {
            "words": len(self.judged),
            "splitting": len(self.main) - 1,
            "main_f1": self.f1,
            "main_latents": " ".join(map(str, self.main)),
            **dict(zip(SHARES, means, strict=True)),
        }

    def splitting(self, weights: Tensor, settings: AbsorptionSettings) -> NDArray[np.int64]:
        """Return how many latents beyond the first the category is split over, under each row of word weights."""
        f1 = weighted_f1(self.predictions, self.true, weights.numpy())
        return main_count(f1, settings.splitting_gain) - 1


@torch.no_grad()
def absorption(
    dictionary: Dictionary, task: Task, probes: Probes, settings: AbsorptionSettings, sampling: EvaluateSettings
) -> Absorption:
    """Measure ``dictionary`` on the test words of every category with a good probe.

    Raises:
        UserError: no latent fires on any word, or no probe is good enough.
    """
    readable = readable_categories(probes, settings)
    latents = _latents(dictionary, task)
    total, skip = of_words(dictionary, task, probes)
    rows = dictionary.W_dec.float()
    along = (rows @ probes.direction.to(rows).T).cpu().numpy()
    cosines = along / rows.norm(dim=1, keepdim=True).clamp_min(1e-12).cpu().numpy()
    measured = {
        i: _measure(
            latents,
            task.categories == probes.categories[i],
            task.test.numpy(),
            probes.right[i].numpy(),
            Along(along[:, i], cosines[:, i], total[:, i], skip[:, i]),
            settings,
        )
        for i in readable
    }
    statistics = _means([(one.judged, one.shares) for one in measured.values()])
    statistics["splitting"] = lambda w: np.mean([one.splitting(w, settings) for one in measured.values()], axis=0)
    categories = pd.DataFrame(
        [
            {"category": category, "probe_f1": float(probes.f1[i]), "kept": i in measured}
            | (measured[i].row() if i in measured else {})
            for i, category in enumerate(probes.categories)
        ]
    )
    return Absorption(_intervals(statistics, task.test, sampling) | _of_categories(categories), categories)


def _of_categories(categories: pd.DataFrame) -> dict[str, float]:
    """Return the metrics that need no interval: means and counts over the readable categories."""
    readable = categories[categories["kept"]]
    return {
        "main_f1": float(readable["main_f1"].mean()),
        "categories_with_latent": float((readable["main_f1"] >= LEAST_MAIN_F1).sum()),
        "probe_f1": float(readable["probe_f1"].mean()),
        "categories": float(len(readable)),
        "words": float(readable["words"].sum()),
    }


def _measure(
    latents: csr_array,
    true: NDArray[np.bool_],
    test: NDArray[np.bool_],
    right: NDArray[np.bool_],
    along: Along,
    settings: AbsorptionSettings,
) -> Category:
    """Find a category's main latents, and who carries its probe's projection on test words where that is right."""
    order, predictions = sparse_probes(latents, true, ~test, settings)
    f1 = weighted_f1(predictions[test], true[test], np.ones((1, int(test.sum()))))
    k = int(main_count(f1, settings.splitting_gain)[0])
    judged = np.flatnonzero(test & right)
    on_judged = along._replace(total=along.total[judged], skip=along.skip[judged])
    shares = carried(latents[judged].toarray(), order[:k], on_judged, settings)
    return Category(order[:k], float(f1[0, k - 1]), predictions, true, judged, shares)


@torch.no_grad()
def skip_alone(
    predict: Callable[[Float[Tensor, "words d_in"]], Float[Tensor, "words d_out"]],
    task: Task,
    probes: Probes,
    settings: AbsorptionSettings,
    sampling: EvaluateSettings,
) -> dict[str, float]:
    """Return the same metrics of a map from x to y without latents: nothing can absorb, all is skip path."""
    readable = readable_categories(probes, settings)
    total, skip = of_words(Dictionary(_no_latents, torch.zeros(0), 0.0, predict), task, probes)
    words = []
    for i in readable:
        judged = np.flatnonzero(task.test.numpy() & probes.right[i].numpy())
        none = np.zeros(len(judged))
        words.append((judged, Shares(none, none > 0, none, share_of(skip[judged, i], total[judged, i]))))
    return _intervals(_means(words), task.test, sampling)


def _no_latents(x: Tensor) -> SparseLatents:
    none = torch.zeros(0)
    return SparseLatents(torch.zeros(len(x) + 1, dtype=torch.long), none.long(), none, 0)


def readable_categories(probes: Probes, settings: AbsorptionSettings) -> list[int]:
    """Return which of the probes are good enough to judge latents by.

    Raises:
        UserError: none is.
    """
    readable = [i for i, f1 in enumerate(probes.f1.tolist()) if f1 >= settings.least_probe_f1 and f1 > 0]
    if not readable:
        if not probes.categories:
            raise UserError("absorption.words: 0 leaves the absorption task out")
        best = int(probes.f1.argmax())
        raise UserError(
            f"absorption.least_probe_f1: {settings.least_probe_f1} leaves out every category; the best probe, for "
            f"{probes.categories[best]!r}, has F1 {float(probes.f1[best]):.2f}; lower it, or choose another layer"
        )
    return readable


def _latents(dictionary: Dictionary, task: Task) -> csr_array:
    """Return the latents of all words, [words, d_hidden]."""
    device = dictionary.W_dec.device
    latents = dictionary.encode(task.x.to(device))
    values = latents.values.float().cpu().numpy()
    if not (values > 0).any():
        raise UserError(
            f"absorption: none of the {latents.d_hidden} latents fires on any of {len(task.words)} words; there is "
            "nothing to measure: see dead_fraction, train longer or lower train.dead_after_tokens"
        )
    indices, offsets = (part.cpu().numpy().astype(np.int32) for part in (latents.indices, latents.offsets))
    result = csr_array((values, indices, offsets), shape=(len(task.words), latents.d_hidden))
    result.eliminate_zeros()
    return result


def _means(words: list[tuple[NDArray[np.int64], Shares]]) -> dict[str, Statistic]:
    """Return of each share the statistic that is the mean over categories of the mean over a category's words."""

    def mean(weights: Tensor, field: int) -> NDArray[np.float64]:
        w = weights.numpy()
        means = []
        for judged, shares in words:
            drawn = w[:, judged]
            sums = drawn.sum(1)
            means.append(np.where(sums > 0, drawn @ shares[field] / np.maximum(sums, 1), np.nan))
        return np.ma.masked_invalid(means).mean(0).filled(np.nan)

    return {name: partial(mean, field=i) for i, name in enumerate(SHARES)}


def _intervals(
    statistics: dict[str, Statistic], test: Bool[Tensor, "words"], sampling: EvaluateSettings
) -> dict[str, float]:
    """Return each statistic on all test words, with its bootstrap percentiles over words."""
    metrics: dict[str, float] = {}
    for name, statistic in statistics.items():
        value, low, high = interval(statistic, test, sampling)
        metrics |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return metrics
