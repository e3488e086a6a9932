"""Figures of nested and progressive runs: prefixes, phases, dead latents and overlap by group."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from transcoders.figures.style import STYLE, Colours, legend_below, legend_names, legend_of_runs, readable_log

PRUNED_STYLE: dict[str, Any] = {"linestyle": ":", "marker": "x", "markersize": 5}
MEASURES = {"fvu": "FVU (lower is better)", "loss_recovered": "loss recovered (higher is better)"}


def prefixes(table: pd.DataFrame, colours: Colours) -> Figure:
    """Draw FVU and loss recovered over the number of latents: nested runs, pruned plain ones, separate ones."""
    layers = table["layer"].drop_duplicates().tolist()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6 * len(layers) + 0.4), layout="constrained")
        grid = figure.subplots(len(layers), 2, squeeze=False)
        for row, layer in zip(grid, layers, strict=True):
            here = table[table["layer"] == layer]
            for axes, (measure, label) in zip(row, MEASURES.items(), strict=True):
                _draw_prefixes(axes, here, measure, colours)
                axes.set_ylabel(label)
                axes.set_title(f"Layer {layer}, held-out documents")
        handles = [
            Line2D([], [], color=colour, marker="o", label=name) for name, colour in legend_names(colours).items()
        ]
        if (table["kind"] == "pruned").any():
            handles.append(Line2D([], [], color="#6E6E6E", label="pruned to that size", **PRUNED_STYLE))
        legend_below(figure, handles)
    return figure


def _draw_prefixes(axes: Axes, table: pd.DataFrame, measure: str, colours: Colours) -> None:
    for (run, kind), curve in table.groupby(["run", "kind"], sort=False):
        colour = colours[str(run)]
        if kind == "pruned":
            unpruned = table[(table["run"] == run) & (table["kind"] == "trained")]
            curve = pd.concat([curve, unpruned])
            axes.plot(curve["latents"], curve[measure], color=colour, **PRUNED_STYLE)
        else:
            axes.plot(curve["latents"], curve[measure], color=colour, marker="o", markersize=5)
    readable_log(axes, "x")
    sizes = sorted(table["latents"].unique())
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("latents kept (log scale)")


def phases(curves: pd.DataFrame, colours: Colours) -> Figure:
    """Draw validation error and dead latents of progressive runs, with the phases' boundaries."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2, sharex=True)
        of_runs = {str(name): colours[str(name)] for name in curves["run"].unique()}
        for name, colour in of_runs.items():
            curve = curves[curves["run"] == name]
            for _, part in curve.dropna(subset=["validation_nmse"]).groupby("phase"):
                left.plot(part["tokens"], part["validation_nmse"], color=colour, marker="o", markersize=3)
            right.plot(curve["tokens"], curve["dead_fraction"], color=colour)
        _mark_boundaries([left, right], curves)
        left.set(title="Validation error by phase", ylabel="NMSE of the latents so far", xlabel="training tokens")
        right.set(title="Dead among the latents so far", ylabel="share of latents", xlabel="training tokens")
        right.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
        right.set_ylim(bottom=0)
        left.xaxis.set_major_formatter(EngFormatter(sep=""))
        legend_of_runs(figure, of_runs)
    return figure


def _mark_boundaries(panels: list[Axes], curves: pd.DataFrame) -> None:
    """Draw a line where a phase begins, with the number of latents from there; runs that agree share it."""
    begins = curves.groupby(["run", "phase"], sort=False)[["tokens", "latents"]].first()
    marks = begins.drop_duplicates().sort_values("tokens")
    for axes in panels:
        for tokens, latents in marks.itertuples(index=False):
            axes.axvline(tokens, color="#B0B4BA", linewidth=0.7, zorder=0.5)
            axes.annotate(
                f"{latents:g}",
                (tokens, 1),
                xycoords=axes.get_xaxis_transform(),
                xytext=(2, -2),
                textcoords="offset points",
                rotation=90,
                va="top",
                fontsize=6.5,
                color="#6E6E6E",
            )


def dead_by_group(groups: pd.DataFrame, colours: Colours) -> Figure:
    """Draw the share of each group's latents that never fire on the held-out documents."""
    names = list(groups["run"].unique())
    width = 0.8 / len(names)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.subplots()
        for place, name in enumerate(names):
            of_run = groups[groups["run"] == name]
            axes.bar(
                of_run["group"] + (place - (len(names) - 1) / 2) * width,
                of_run["group_dead_fraction"],
                width,
                color=colours[name],
            )
        one = groups[groups["run"] == names[0]]
        axes.set_xticks(one["group"], [f"{a:g}-{b:g}" for a, b in zip(one["start"], one["stop"], strict=True)])
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
        axes.set(title="Dead latents by group", xlabel="latents of the group", ylabel="never fire, held-out")
        legend_of_runs(figure, {name: colours[name] for name in names})
    return figure


def overlap(table: pd.DataFrame) -> Figure:
    """Draw how near the decoder rows of each group are to those of each other: one map a run."""
    names = list(table["run"].unique())
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(2.7 * columns + 0.8, 2.7 * rows + 0.5), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        largest = table["mean_max_cosine"].max()
        for axes in grid.flat[len(names) :]:
            axes.set_axis_off()
        for axes, name in zip(grid.flat, names, strict=False):
            square = table[table["run"] == name].pivot_table(index="group", columns="other", values="mean_max_cosine")
            image = axes.imshow(square, cmap="cividis", vmin=0, vmax=largest)
            _write_numbers(axes, square.to_numpy(), largest)
            axes.set_xticks(range(len(square)), [f"{g:g}" for g in square.columns])
            axes.set_yticks(range(len(square)), [f"{g:g}" for g in square.index])
            axes.set(title=name, xlabel="nearest row in group", ylabel="row of group")
        figure.colorbar(image, ax=grid, label="mean largest cosine", shrink=0.8)
    return figure


def _write_numbers(axes: Axes, values: Any, largest: float) -> None:
    for (i, j), value in np.ndenumerate(values):
        dark = value < 0.55 * largest
        axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
