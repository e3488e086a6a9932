"""Stage ``plot``: the runs' curves, densities and comparison, as tables for ``dvc plots`` and as
figures for papers.

Reads ``models/<run>/history.csv``, ``data/{density,groups,overlap,scores}/<run>.csv``, ``data/compare.csv``
and ``data/pruned.csv``; writes
``plots/data/*.csv`` and ``plots/figures/*.{png,svg}``, the same bytes for the same input.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.entry import entry
from stages.params import load_params
from transcoders.core.errors import UserError
from transcoders.core.files import replacing
from transcoders.core.tables import read_csv
from transcoders.figures import nested as nested_figures
from transcoders.figures import runs as figures

# Every plot of the page carries its whole table, and a chart is about 500 pixels wide.
POINTS_PER_CURVE = 200
PREFIX_COLUMNS = (
    "run", "kind", "layer", "latents", "k", "l0", "fvu", "loss_recovered", "group_dead_fraction",
    "mean_max_cosine_earlier", "novel_fraction",
)  # fmt: skip


def run(run_names: Sequence[str], root: Path) -> None:
    """Read the inputs of the runs under ``root`` and replace ``root/plots`` as a whole."""
    histories = {name: read_table(root / f"models/{name}/history.csv", f"train@{name}") for name in run_names}
    densities = {name: read_table(root / f"data/density/{name}.csv", f"evaluate@{name}") for name in run_names}
    comparison = read_table(root / "data/compare.csv", "compare")
    groups = stack({name: read_table(root / f"data/groups/{name}.csv", f"evaluate@{name}") for name in run_names})
    overlap = stack({name: read_table(root / f"data/overlap/{name}.csv", f"evaluate@{name}") for name in run_names})
    scores = stack({name: read_table(root / f"data/scores/{name}.csv", f"features@{name}") for name in run_names})
    prefixes = by_prefix(groups, read_csv(root / "data/pruned.csv", "compare"))
    curves = stack({name: thin(history) for name, history in histories.items()})
    density = stack({name: shares(table) for name, table in densities.items()})

    with replacing(root / "plots") as out:
        (out / "data").mkdir(parents=True)
        write_table(out / "data/curves.csv", curves)
        write_table(out / "data/density.csv", density)
        write_table(out / "data/scores.csv", scores)
        write_table(out / "data/comparison.csv", comparison)
        write_table(out / "data/prefixes.csv", prefixes)

        (out / "figures").mkdir()
        colours = figures.colours_of(run_names)
        drawn = {
            "training_curves": figures.training_curves(curves, colours),
            "firing_density": figures.firing_density(density, colours),
            "detection_scores": figures.detection_scores(scores, colours),
            "comparison": figures.comparison(comparison, colours),
            "frontier": figures.frontier(comparison, colours),
        }
        nested = groups[groups.groupby("run")["group"].transform("max") > 1]
        if len(nested):
            drawn["prefixes"] = nested_figures.prefixes(prefixes, colours)
            drawn["dead_by_group"] = nested_figures.dead_by_group(nested, colours)
            drawn["decoder_overlap"] = nested_figures.overlap(overlap[overlap["run"].isin(nested["run"])])
        progressive = curves[curves.groupby("run")["stage"].transform("max") > 1]
        if len(progressive):
            drawn["stages"] = nested_figures.stages(progressive, colours)
        for name, figure in drawn.items():
            figures.save(figure, out / "figures" / name)


def read_table(path: Path, stage: str) -> pd.DataFrame:
    """Read a CSV that ``stage`` writes."""
    table = read_csv(path, stage)
    if table.empty:
        raise UserError(f"{path}: no rows; write it anew with `dvc repro -f {stage}`")
    return table


def thin(history: pd.DataFrame, points: int = POINTS_PER_CURVE) -> pd.DataFrame:
    """Evenly spaced rows with both ends, and as many of the rows that hold a validation."""
    rows = np.arange(len(history))
    validated = rows[history["validation_nmse"].notna()]
    return history.iloc[np.union1d(spread(rows, points), spread(validated, points))]


def by_prefix(groups: pd.DataFrame, pruned: pd.DataFrame) -> pd.DataFrame:
    """What so many latents reach: every run's prefixes, and plain runs pruned to these sizes."""
    trained = groups.rename(columns={"stop": "latents"}).assign(
        kind="trained", layer=[int(str(run).rsplit("-", 2)[1]) for run in groups["run"]]
    )
    cut = pruned.rename(columns={"name": "run"}).assign(kind="pruned")
    table = pd.concat([trained, cut])[list(PREFIX_COLUMNS)]
    return table.assign(name=table["run"] + np.where(table["kind"] == "pruned", " pruned", ""))


def spread(items: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most ``count`` of ``items``, evenly spaced, the first and the last among them."""
    if len(items) <= count:
        return items
    return np.take(items, np.linspace(0, len(items) - 1, count).round().astype(int))


def shares(density: pd.DataFrame) -> pd.DataFrame:
    """Bins by their centre (-inf: never fires) with each bin's share of the latents.

    Empty bins outside the occupied range go, so that the plots show only where latents are.
    """
    edges = density["log10_frequency"]
    width = edges[np.isfinite(edges)].diff().median()
    occupied = np.flatnonzero((density["latents"] > 0) & np.isfinite(edges))
    first, last = (occupied[0], occupied[-1]) if len(occupied) else (1, 0)
    position = np.arange(len(density))
    shown = np.isneginf(edges) | ((position >= first - 1) & (position <= last + 1))
    return pd.DataFrame(
        {
            "log10_frequency": edges + width / 2,
            "latents": density["latents"],
            "share": density["latents"] / density["latents"].sum(),
        }
    )[shown]


def stack(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One long table with the run's name as its first column."""
    return pd.concat(tables, names=["run"]).reset_index("run").reset_index(drop=True)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Six digits are more than a chart shows, and keep the page small."""
    table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    entry(lambda: run(load_params().run_names, Path()))
