"""Absorption and splitting: do the latents for "begins with s" fire on all words that do?

Definitions: arXiv 2409.14507 (splitting), arXiv 2503.09532, appendix (absorption fraction, full
absorption), here in the space of MLP outputs, where decoder rows live.
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
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from transcoders.absorption.settings import AbsorptionSettings
from transcoders.absorption.words import Probes, Task
from transcoders.core.errors import UserError
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.bootstrap import interval
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.kernels import SparseLatents

NAMES = ("mean_absorption", "full_absorption", "main_share", "skip_share")
L1_PENALTY = 0.01  # as SAEBench's, per word, on latents of root mean square 1 where they are active
SILENT = 1e-8
TELLS = 0.5
"""A letter has latents of its own if the probe on its main ones reaches this F1: else none can be absorbed."""


class Dictionary(NamedTuple):
    """What the metrics ask of a model, all in raw units. ``Dictionary(m.encode, m.W_dec)`` suits most."""

    encode: Callable[[Float[Tensor, "tokens d_in"]], SparseLatents]
    W_dec: Float[Tensor, "d_hidden d_out"]
    b_dec: Float[Tensor, "d_out"] | float = 0.0
    skip: Callable[[Float[Tensor, "tokens d_in"]], Float[Tensor, "tokens d_out"]] | None = None
    """A path past the latents, for example ``x W_skip^T``."""


def dictionary_of(model: Transcoder) -> Dictionary:
    """A transcoder with its scales folded into its rows."""
    config = model.config
    scale = config.output_scale

    def skip(x: Tensor) -> Tensor:
        return x @ model.W_skip.float().T * (scale / config.input_scale)

    return Dictionary(model.encode, model.W_dec.float() * scale, model.b_dec * scale, skip if config.skip else None)


class Absorption(NamedTuple):
    """Metrics with intervals over test words, and one row for each letter that has a probe."""

    metrics: dict[str, float]
    letters: pd.DataFrame


class _Shares(NamedTuple):
    """Of each word: who carries the probe's projection."""

    absorption: NDArray[np.float64]
    full: NDArray[np.bool_]
    main: NDArray[np.float64]
    skip: NDArray[np.float64]


class _Along(NamedTuple):
    """What decoder rows and words have along one probe p: <d_i, p>, cos(d_i, p), and ``_projections``."""

    rows: NDArray[np.float64]
    cosines: NDArray[np.float64]
    total: NDArray[np.float64]
    skip: NDArray[np.float64]


class _Letter(NamedTuple):
    """All that was found of one letter."""

    main: NDArray[np.int64]
    f1: float
    predictions: NDArray[np.bool_]
    true: NDArray[np.bool_]
    judged: NDArray[np.int64]
    """Test words that the probe gets right: those that absorption is measured on."""
    shares: _Shares

    def row(self) -> dict[str, object]:
        """For the table of letters."""
        means = (float(np.mean(values)) if len(values) else 0.0 for values in self.shares)
        return {
            "words": len(self.judged), "splitting": len(self.main) - 1, "main_f1": self.f1,
            "main_latents": " ".join(map(str, self.main)), **dict(zip(NAMES, means, strict=True)),
        }  # fmt: skip


@torch.no_grad()
def absorption(
    dictionary: Dictionary, task: Task, probes: Probes, settings: AbsorptionSettings, sampling: EvaluateSettings
) -> Absorption:
    """Measure ``dictionary`` on the test words of every letter with a good probe.

    Raises:
        UserError: no latent fires on any word, or no probe is good enough.
    """
    kept = _good(probes, settings)
    latents = _latents(dictionary, task)
    total, skip = _projections(dictionary, task, probes)
    rows = dictionary.W_dec.float()
    along = (rows @ probes.direction.to(rows).T).cpu().numpy()
    cosines = along / rows.norm(dim=1, keepdim=True).clamp_min(1e-12).cpu().numpy()
    found = [
        _measure(
            latents, task.initials == probes.letters[i], task.test.numpy(), probes.right[i].numpy(),
            _Along(along[:, i], cosines[:, i], total[:, i], skip[:, i]), settings,
        )
        for i in kept
    ]  # fmt: skip
    metrics = _intervals(
        _letter_means([(one.judged, one.shares) for one in found], len(task.words))
        | {"splitting": lambda w: np.mean([_splitting(one, w.numpy(), settings) for one in found], axis=0)},
        task.test,
        sampling,
    )
    own = dict(zip(kept, (one.row() for one in found), strict=True))
    letters = pd.DataFrame([
        {"letter": letter, "probe_f1": float(probes.f1[i]), "kept": i in own, **own.get(i, {})}
        for i, letter in enumerate(probes.letters)
    ])  # fmt: skip
    good = letters[letters["kept"]]
    metrics |= {
        "main_f1": float(good["main_f1"].mean()),
        "letters_with_latent": float((good["main_f1"] >= TELLS).sum()),
        "probe_f1": float(good["probe_f1"].mean()),
        "letters": float(len(good)),
        "words": float(good["words"].sum()),
    }
    return Absorption(metrics, letters)


def _measure(
    latents: csr_array,
    true: NDArray[np.bool_],
    test: NDArray[np.bool_],
    right: NDArray[np.bool_],
    along: _Along,
    settings: AbsorptionSettings,
) -> _Letter:
    order, predictions = _sparse_probes(latents, true, ~test, settings)
    f1 = _f1(predictions[test], true[test], np.ones((1, int(test.sum()))))
    k = int(_main_latents(f1, settings.splitting_gain)[0])
    judged = np.flatnonzero(test & right)
    own = _Along(along.rows, along.cosines, along.total[judged], along.skip[judged])
    shares = _carried(latents[judged].toarray(), order[:k], own, settings)
    return _Letter(order[:k], float(f1[0, k - 1]), predictions, true, judged, shares)


@torch.no_grad()
def skip_alone(
    predict: Callable[[Tensor], Tensor], task: Task, probes: Probes, settings: AbsorptionSettings,
    sampling: EvaluateSettings,
) -> dict[str, float]:  # fmt: skip
    """The same metrics of a map from x to y without latents: nothing can absorb, all is skip path."""
    kept = _good(probes, settings)
    total, skip = _projections(Dictionary(lambda x: _nothing(len(x)), torch.zeros(0), 0.0, predict), task, probes)
    words = []
    for number in kept:
        judged = np.flatnonzero(task.test.numpy() & probes.right[number].numpy())
        none = np.zeros(len(judged))
        words.append((judged, _Shares(none, none > 0, none, _share(skip[judged, number], total[judged, number]))))
    return _intervals(_letter_means(words, len(task.words)), task.test, sampling)


def _nothing(tokens: int) -> SparseLatents:
    none = torch.zeros(0)
    return SparseLatents(torch.zeros(tokens + 1, dtype=torch.long), none.long(), none, 0)


def _good(probes: Probes, settings: AbsorptionSettings) -> list[int]:
    kept = [i for i, f1 in enumerate(probes.f1.tolist()) if f1 >= settings.least_probe_f1 and f1 > 0]
    if not kept:
        best = int(probes.f1.argmax())
        raise UserError(
            f"absorption.least_probe_f1: {settings.least_probe_f1} leaves out every letter; the best probe, for "
            f"{probes.letters[best]!r}, has F1 {float(probes.f1[best]):.2f}; lower it, or choose another layer"
        )
    return kept


def _latents(dictionary: Dictionary, task: Task) -> csr_array:
    device = dictionary.W_dec.device
    found = dictionary.encode(task.x.to(device))
    values = found.values.float().cpu().numpy()
    if not (values > 0).any():
        raise UserError(
            f"absorption: none of the {found.d_hidden} latents fires on any of {len(task.words)} words; there is "
            "nothing to measure: see dead_fraction, train longer or lower train.dead_after_tokens"
        )
    result = csr_array(
        (values, found.indices.cpu().numpy().astype(np.int32), found.offsets.cpu().numpy().astype(np.int32)),
        shape=(len(task.words), found.d_hidden),
    )
    result.eliminate_zeros()
    return result


def _projections(dictionary: Dictionary, task: Task, probes: Probes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each word on each probe: what y projects beyond the constants, and what the skip path does.

    Constants are b_dec and the skip path's mean over the training words: no latent is needed for them.
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


def _sparse_probes(
    latents: csr_array, true: NDArray[np.bool_], train: NDArray[np.bool_], settings: AbsorptionSettings
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The latents that tell a letter, best first, and what probes on the first 1, 2, ... of them say.

    Those with the largest positive weights of an L1-regularised probe on all latents are taken.
    """
    scale = float(np.sqrt(np.mean(latents.data**2)))
    every = latents[train] / scale
    lasso = LogisticRegression(
        l1_ratio=1, solver="liblinear", C=1 / (L1_PENALTY * len(every.indptr)), class_weight="balanced",
        random_state=settings.seed,
    ).fit(every, true[train])  # fmt: skip
    order = np.argsort(-lasso.coef_[0], kind="stable")[: settings.largest_k]
    chosen = latents[:, order].toarray() / scale
    predictions = [
        LogisticRegression(class_weight="balanced").fit(chosen[train, :k], true[train]).predict(chosen[:, :k])
        for k in range(1, len(order) + 1)
    ]
    return order, np.stack(predictions, 1)


def _f1(said: NDArray[np.bool_], true: NDArray[np.bool_], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """F1 of each column of ``said`` [words, k] under each row of word weights [resamples, words]."""
    hits = weights @ (said & true[:, None])
    return np.asarray(2 * hits / np.maximum(weights @ said + (weights @ true)[:, None], 1e-12))


def _main_latents(f1: NDArray[np.float64], gain: float) -> NDArray[np.int64]:
    """The smallest k whose F1 rises by at most ``gain`` from k to k + 1; of each row [resamples, k]."""
    stops = np.diff(f1, axis=1) <= gain
    stops = np.concatenate([stops, np.ones((len(f1), 1), dtype=bool)], axis=1)
    return stops.argmax(1) + 1


def _splitting(letter: _Letter, weights: NDArray[np.float64], settings: AbsorptionSettings) -> NDArray[np.int64]:
    return _main_latents(_f1(letter.predictions, letter.true, weights), settings.splitting_gain) - 1


def _carried(
    values: NDArray[np.float64], main: NDArray[np.int64], along: _Along, settings: AbsorptionSettings
) -> _Shares:
    """Absorption of words on which a probe p is right; ``values`` [words, d_hidden] are their latents a.

    Absorbers are the ``settings.absorbers`` largest contributors a_i <d_i, p> that are not main and
    have cos(d_i, p) >= ``absorber_cosine``. Where main latents carry all of the projection, or
    absorbers carry less than ``least_share`` of it, nothing is absorbed; else the share is
    S_abs / (S_abs + S_main), S_abs being at most what the main latents leave.
    Fully absorbed: no main latent fires, and the largest contributor is an absorber that alone
    carries ``least_share``.
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
    return _Shares(np.where(happens, fraction, 0.0), full, _share(from_main, total), _share(along.skip, total))


def _share(part: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float64]:
    """``part`` of ``total``, within 0 and 1; 0 where there is nothing to share."""
    return np.where(total > 0, np.clip(part / np.where(total > 0, total, 1), 0, 1), 0.0)


Statistic = Callable[[Tensor], NDArray[np.float64]]


def _letter_means(words: list[tuple[NDArray[np.int64], _Shares]], count: int) -> dict[str, Statistic]:
    """Of each share: from word weights to the mean over letters of the mean over a letter's words."""

    def mean(weights: Tensor, name: int) -> NDArray[np.float64]:
        w = weights.numpy()
        means = []
        for judged, shares in words:
            drawn = w[:, judged]
            sums = drawn.sum(1)
            means.append(np.where(sums > 0, drawn @ shares[name] / np.maximum(sums, 1), np.nan))
        return np.asarray(np.nanmean(means, axis=0))

    return {name: partial(mean, name=i) for i, name in enumerate(NAMES)}


def _intervals(
    statistics: dict[str, Statistic], test: Bool[Tensor, "words"], sampling: EvaluateSettings
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, statistic in statistics.items():
        value, low, high = interval(statistic, test, sampling)
        metrics |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return metrics
