"""The tables behind figures and `dvc plots`: as many rows as a chart of about 500 pixels can show."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

POINTS_PER_CURVE = 200
"""Every plot of the page carries its whole table."""
PREFIX_COLUMNS = [
    "run",
    "kind",
    "layer",
    "latents",
    "k",
    "l0",
    "fvu",
    "loss_recovered",
    "group_dead_fraction",
    "mean_max_cosine_earlier",
    "novel_fraction",
]


def thin(history: pd.DataFrame, points: int = POINTS_PER_CURVE) -> pd.DataFrame:
    """Return evenly spaced rows with both ends, and as many of the rows that hold a validation."""
    rows = np.arange(len(history))
    validated = rows[history["validation_nmse"].notna()]
    return history.iloc[np.union1d(spread(rows, points), spread(validated, points))]


def spread(items: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return at most ``count`` of ``items``, evenly spaced, the first and the last among them."""
    if len(items) <= count:
        return items
    return np.take(items, np.linspace(0, len(items) - 1, count).round().astype(int))


def by_prefix(groups: pd.DataFrame, pruned: pd.DataFrame) -> pd.DataFrame:
    """Return what so many latents reach: every run's prefixes, and plain runs pruned to these sizes."""
    trained = groups.rename(columns={"stop": "latents"}).assign(
        kind="trained", layer=[int(str(run).rsplit("-", 2)[1]) for run in groups["run"]]
    )
    cut = pruned.rename(columns={"name": "run"}).assign(kind="pruned")
    table = pd.concat([trained, cut])[PREFIX_COLUMNS]
    return table.assign(name=table["run"] + np.where(table["kind"] == "pruned", " pruned", ""))


def ways_of(variants: Mapping[str, Mapping[str, Any]], layers: Iterable[int]) -> dict[str, str]:
    """Return the way to train of ``<variant>-<layer>``, for all ``variants``, which have their settings.

    Variants that differ in ``k_share`` alone are of one way, which has the first one's name without its ``_k8``.
    """
    settings = {
        name: json.dumps({key: value for key, value in given.items() if key != "k_share"}, sort_keys=True)
        for name, given in variants.items()
    }
    first = {given: name for name, given in reversed(settings.items())}
    counts = Counter(settings.values())
    ways = {
        name: re.sub(r"_k\d+$", "", first[given]) if counts[given] > 1 else name for name, given in settings.items()
    }
    return {f"{name}-{layer}": f"{way}-{layer}" for name, way in ways.items() for layer in layers}


def placed_by_sparsity(comparison: pd.DataFrame, ways: Mapping[str, str]) -> pd.DataFrame:
    """Add the columns ``sparsity`` (L0, or the rank of PCA) and ``way``: the points of one are joined to a curve."""
    rank = comparison["name"].str.extract(r"^pca_rank_(\d+)-\d+$", expand=False).astype(float)
    rank = rank.where(comparison["kind"] == "baseline")
    way = comparison["name"].str.rsplit("-", n=1).str[0].map(ways).where(comparison["kind"] == "trained")
    pca = ("pca-" + comparison["layer"].astype(str)).where(rank.notna())
    return comparison.assign(way=way.fillna(pca).fillna(comparison["name"]), sparsity=comparison["l0"].fillna(rank))


def shares(density: pd.DataFrame) -> pd.DataFrame:
    """Return bins by their centre (-inf: never fires) with each bin's share of the latents.

    Empty bins outside the occupied range go, so that the plots show only where latents are.
    """
    edges = density["log10_frequency"]
    width = edges[np.isfinite(edges)].diff().median()
    occupied = np.flatnonzero((density["latents"] > 0) & np.isfinite(edges))
    first, last = (occupied[0], occupied[-1]) if len(occupied) else (1, 0)
    position = np.arange(len(density))
    visible = np.isneginf(edges) | ((position >= first - 1) & (position <= last + 1))
    columns = {
        "log10_frequency": edges + width / 2,
        "latents": density["latents"],
        "share": density["latents"] / density["latents"].sum(),
    }
    return pd.DataFrame(columns)[visible]


def stack(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return one long table with the run's name as its first column."""
    return pd.concat(tables, names=["run"]).reset_index("run").reset_index(drop=True)
