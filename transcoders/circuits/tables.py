"""What the circuits of many prompts come to, as tables and metrics."""

import numpy as np
import pandas as pd
import torch

from transcoders.circuits.connections import strongest
from transcoders.circuits.parts import ModelParts
from transcoders.circuits.suite import Traced
from transcoders.circuits.viewer import Labels
from transcoders.circuits.writers import Transcoders, writers_of
from transcoders.core.files import rounded
from transcoders.evaluation.intervals import paired

MEDIANS = ("faithfulness", "latents_needed", "drop_beyond_random")
WORST = ("completeness_error", "largest_sum_error", "direct_effect_error")
SMALL = {"layer": "int16", "latent": "int32", "from_layer": "int16", "from_latent": "int32"}


def curves_table(variant: str, prompt: str, traced: Traced) -> pd.DataFrame:
    """Return the output of a prompt with the n most influential latents kept, or removed, for every n measured."""
    curves = traced.curves
    columns = {name: value for name, value in curves._asdict().items() if name != "sizes"}
    return pd.DataFrame({"variant": variant, "prompt": prompt, "latents": curves.sizes, **columns})


def connections_table(parts: ModelParts, transcoders: Transcoders, count: int) -> pd.DataFrame:
    """Return the ``count`` strongest input-independent connections into every latent; for 0, no rows."""
    by_layer = []
    for layer in [*writers_of(transcoders)][1:] if count else []:
        best = strongest(parts, transcoders, layer, count)
        columns = {
            "layer": layer,
            "latent": torch.arange(len(best.weight)).repeat_interleave(best.weight.shape[1]),
            "from_layer": best.layer.flatten().cpu(),
            "from_latent": best.latent.flatten().cpu(),
            "weight": best.weight.flatten().cpu(),
        }
        by_layer.append(pd.DataFrame(columns).astype(SMALL))
    return pd.concat(by_layer) if by_layer else pd.DataFrame()


def labels_of(layer: int, latents: pd.DataFrame) -> Labels:
    """Return a description with its score for each latent of a layer, from the table of stage `features`."""
    rows = latents[["latent", "description", "score"]].itertuples(index=False)
    return {(layer, int(latent)): f"{text} (score {score:.2f})" for latent, text, score in rows}


def summary(table: pd.DataFrame) -> dict[str, float]:
    """Return means over a variant's prompts; medians of what is a ratio or a size; the worst sums."""
    numbers = table.drop(columns=["variant", "prompt", "task"])
    how = {name: "median" if name in MEDIANS else "max" if name in WORST else "mean" for name in numbers}
    figures = {str(name): float(value) for name, value in numbers.agg(how).items() if np.isfinite(value)}
    judged = int(numbers["latents_needed"].notna().sum()) if "latents_needed" in numbers else 0
    preferred = int((numbers["difference"] > 0).sum())
    counts = {"prompts": len(table), "prompts_preferred": preferred, "prompts_judged": judged}
    return rounded({**{name: float(count) for name, count in counts.items()}, **figures})


def contrasts(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Compare the latents needed for equal faithfulness, every variant with the first.

    The figure is the geometric mean of the ratios over prompts, with its 95 % interval.
    """
    if "latents_needed" not in table:
        return {}
    wide = table.pivot(index="prompt", columns="variant", values="latents_needed").clip(lower=1).apply(np.log)
    first, *others = table["variant"].unique()
    result = {}
    for other in others:
        both = wide[[first, other]].dropna()
        if len(both) > 1:
            values = np.exp(paired(both[other], both[first]))
            names = ("latents_needed_ratio", "low", "high")
            result[f"{other}_over_{first}"] = rounded(dict(zip(names, map(float, values), strict=True)))
    return result
