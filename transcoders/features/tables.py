"""From what a pass observed to tables: one row a latent, one row a context."""

from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transcoders.features.describe import Described, Latents
from transcoders.features.effects import Effects, Relatives
from transcoders.features.observe import Observer
from transcoders.features.scores import summary
from transcoders.features.settings import DescribeSettings
from transcoders.features.texts import PAD, Texts

QUANTILES = 4
PER_QUANTILE = 3


def latents_table(
    observer: Observer,
    latents: Latents,
    described: list[Described],
    effects: Effects,
    nearest: tuple[NDArray[np.int64], NDArray[np.float32]],
    relatives: tuple[list[Relatives], list[Relatives]],
    texts: Texts,
) -> pd.DataFrame:
    """Return a table of one row a living latent."""
    living = latents.living
    groups = observer.model.config.groups
    of_group = np.searchsorted([group.stop for group in groups], living, side="right") + 1
    parents, children = relatives
    scores = scores_of(described)
    return pd.DataFrame(
        {
            "latent": living,
            "group": of_group,
            "density": observer.firings[living] / sum(observer.tokens.values()),
            "firings": observer.firings[living],
            "mean": observer.total[living] / observer.firings[living],
            "max": observer.largest[living],
            "bin_width": observer.histograms.width[living],
            "histogram": list(observer.histograms.counts[living]),
            "description": [d.description.text if d.description else "" for d in described],
            "explainer": [d.description.explainer if d.description else "" for d in described],
            "score": scores,
            "fuzzing": scores_of(described, "fuzzing"),
            "scored_on": np.where(np.isnan(scores), 0, [2 * len(unseen.active) for unseen in latents.unseen]),
            "promoted": [texts.of(row) for row in effects.promoted],
            "promoted_by": list(effects.promoted_by),
            "suppressed": [texts.of(row) for row in effects.suppressed],
            "suppressed_by": list(effects.suppressed_by),
            "nearest": list(nearest[0]),
            "nearest_cosine": list(nearest[1]),
            "parents": [parents[i].latent for i in living],
            "parents_share": [parents[i].share for i in living],
            "children": [children[i].latent for i in living],
            "children_share": [children[i].share for i in living],
        }
    )


def scores_of(described: list[Described], kind: Literal["score", "fuzzing"] = "score") -> NDArray[np.float64]:
    """Return the scores of one kind; NaN where there is none."""
    return np.array([getattr(d, kind) for d in described], dtype=np.float64)


def summaries(described: list[Described], settings: DescribeSettings, prefix: str = "") -> dict[str, float]:
    """Return what ``summary`` says of both kinds of scores; names begin with ``prefix``."""
    kinds = {"detection": scores_of(described), "fuzzing": scores_of(described, "fuzzing")}
    metrics: dict[str, float] = {}
    for kind, scores in kinds.items():
        metrics |= summary(scores, settings, kind, prefix)
    return metrics


def contexts_table(observer: Observer, latents: Latents, texts: Texts) -> pd.DataFrame:
    """Return a row for each context to show: the ``top`` ones, and some of each quarter of the sampled activations.

    Columns: latent, kind (top, or q1, the weakest quarter, to q4), document, context, tokens, values.
    """
    rows = []
    for latent in latents.living.tolist():
        chosen = [("top", observer.top, slot) for slot in observer.top.of(latent)]
        chosen += [(f"q{q}", observer.sample, slot) for q, slot in _quantile_slots(observer, latent)]
        for kind, keeper, slot in chosen:
            fields = {name: values[latent, slot] for name, values in keeper.fields.items()}
            inside = fields["tokens"] != PAD
            rows.append(
                (
                    latent,
                    kind,
                    fields["document"],
                    fields["context"],
                    texts.of(fields["tokens"]),
                    fields["values"][inside],
                )
            )
    return pd.DataFrame(rows, columns=["latent", "kind", "document", "context", "tokens", "values"])


def _quantile_slots(observer: Observer, latent: int) -> list[tuple[int, int]]:
    """Return (quarter, slot) of up to PER_QUANTILE sampled firings each, from different contexts if possible."""
    keeper = observer.sample
    slots = keeper.of(latent)
    centre = 2 * observer.settings.window // 3
    strength = keeper.fields["values"][latent][slots, centre]
    order = slots[np.argsort(strength, kind="stable")]
    slots_of_quarters, seen = [], set()
    for quarter, part in reversed(list(enumerate(np.array_split(order, QUANTILES), 1))):
        taken = 0
        for slot in part[::-1].tolist():
            context = int(keeper.fields["context"][latent, slot])
            if taken < PER_QUANTILE and context not in seen:
                seen.add(context)
                slots_of_quarters.append((quarter, slot))
                taken += 1
    return slots_of_quarters
