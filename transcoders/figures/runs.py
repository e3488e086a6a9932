"""The figures of stage ``plot``, drawn by matplotlib for papers; each function returns a figure."""

from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from transcoders.figures.style import (
    KIND_COLOURS,
    STYLE,
    Colours,
    colour_of,
    label,
    legend_of_kinds,
    legend_of_points,
    legend_of_runs,
    marker_of,
    readable_log,
)


class Panel(NamedTuple):
    """Describe one panel of the training curves."""

    column: str
    title: str
    label: str
    log: bool = False
    percent: bool = False


PANELS = (  # not the loss: that of a nested run is a sum over its prefixes, and has no common scale with a plain one's
    Panel("nmse", "Training error", "NMSE of all latents so far", log=True),
    Panel("validation_nmse", "Validation error", "NMSE of all latents so far", log=True),
    Panel("l0", "L0", "active latents per token"),
    Panel("dead_fraction", "Dead latents", "share of all latents", percent=True),
    Panel("learning_rate", "Learning rate", "learning rate"),
    Panel("gradient_norm", "Gradient norm before clipping", "L2 norm", log=True),
)


def training_curves(curves: pd.DataFrame, colours: Colours) -> Figure:
    """Draw training and validation error, L0, dead latents, learning rate and gradient norm over training tokens."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 5.6), layout="constrained")
        grid = figure.subplots(2, 3, sharex=True)
        for axes, panel in zip(grid.flat, PANELS, strict=True):
            draw_panel(axes, panel, curves, colours)
        for axes in grid[-1]:
            axes.set_xlabel("training tokens")
        legend_of_runs(figure, colours)
    return figure


def draw_panel(axes: Axes, panel: Panel, curves: pd.DataFrame, colours: Colours) -> None:
    """Draw one curve a run; with dots where only some steps have a value."""
    for name, curve in curves.groupby("run", sort=False):
        measured = curve.dropna(subset=[panel.column])
        dots = "o" if len(measured) < len(curve) else None
        axes.plot(measured["tokens"], measured[panel.column], color=colours[str(name)], marker=dots, markersize=3)
    axes.set_title(panel.title)
    axes.set_ylabel(panel.label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if panel.log:
        readable_log(axes, "y")
    else:
        axes.set_ylim(bottom=0)
    if panel.percent:
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")


def firing_density(density: pd.DataFrame, colours: Colours) -> Figure:
    """Draw how often the latents fire: a histogram over log10 of the frequency, and the silent ones."""
    never = density[np.isneginf(density["log10_frequency"])]
    bins = density[np.isfinite(density["log10_frequency"])]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.subplots()
        draw_histograms(axes, bins, "log10_frequency", colours)
        draw_never(axes, never, colours)
        axes.set_title("How often latents fire on held-out documents")
        axes.set_xlabel("firing frequency, log₁₀ of the share of tokens")
        legend_of_runs(figure, colours)
    return figure


def detection_scores(scores: pd.DataFrame, colours: Colours) -> Figure:
    """Draw how well descriptions predict where latents fire: a histogram of the scores, with chance marked."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.subplots()
        draw_histograms(axes, scores, "score", colours)
        axes.axvline(0.5, color="0.5", linewidth=0.8, linestyle=":")
        axes.annotate("chance", (0.5, 1), (-3, -3), ("data", "axes fraction"), "offset points", ha="right", va="top")
        axes.set_xlim(right=1)
        axes.set_title("How well descriptions tell unseen contexts")
        axes.set_xlabel("detection score (balanced accuracy)")
        legend_of_runs(figure, colours)
    return figure


def draw_histograms(axes: Axes, bins: pd.DataFrame, place: str, colours: Colours) -> None:
    """Draw shares of latents by the bins' centres, a curve of steps for each run."""
    for name, table in bins.groupby("run", sort=False):
        axes.fill_between(table[place], table["share"], step="mid", color=colours[str(name)], alpha=0.1)
        axes.step(table[place], table["share"], where="mid", color=colours[str(name)])
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    axes.set_ylabel("share of latents per bin")


def draw_never(axes: Axes, never: pd.DataFrame, colours: Colours) -> None:
    """Draw a stem a run, left of the histogram, for the latents that never fire."""
    left, right = axes.get_xlim()
    ticks = np.arange(np.ceil(left), np.floor(right) + 1)
    names = [f"{tick:g}" for tick in ticks]
    places = left - 0.1 - 0.08 * np.arange(len(never))[::-1]
    for place, name, share in zip(places, never["run"], never["share"], strict=True):
        axes.vlines(place, 0, share, color=colours[str(name)], linewidth=1)
        axes.plot(place, share, marker="o", markersize=5, color=colours[str(name)], clip_on=False)
    if len(never):
        axes.axvline(left, color="#8C8C8C", linewidth=0.8, linestyle=":")
        ticks, names = np.append(ticks, places.mean()), [*names, "never"]
    axes.set_xticks(ticks, names)
    axes.set_xlim(min([left, *places]) - 0.1, right)


def comparison(table: pd.DataFrame, colours: Colours) -> Figure:
    """Draw FVU and loss recovered of runs, baselines and official dictionaries; one row a layer."""
    layers = table["layer"].drop_duplicates().tolist()
    heights = [0.26 * (table["layer"] == layer).sum() + 0.5 for layer in layers]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, sum(heights) + 0.8), layout="constrained")
        grid = figure.subplots(len(layers), 2, sharey="row", squeeze=False, height_ratios=heights)
        for row, layer in zip(grid, layers, strict=True):
            here = table[table["layer"] == layer]
            draw_bars(row[0], here, "fvu", colours)
            draw_bars(row[1], here, "loss_recovered", colours)
            row[0].set_title(f"Layer {layer}: variance unexplained (FVU, lower is better)")
            row[1].set_title("Loss recovered (higher is better)")
        legend_of_kinds(figure, table)
    return figure


def draw_bars(axes: Axes, table: pd.DataFrame, column: str, colours: Colours) -> None:
    """Draw horizontal bars from top to bottom in the table's order, each with its value."""
    places = np.arange(len(table))
    shades = [colour_of(row, colours) for row in table.itertuples()]
    bars = axes.barh(places, table[column], color=shades, height=0.72)
    labels = ["" if np.isnan(value) else f"{value:.3f}" for value in table[column]]
    axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.set_yticks(places, table["name"])
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.margins(x=0.14)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def frontier(table: pd.DataFrame, colours: Colours) -> Figure:
    """Draw FVU and loss recovered over sparsity, a curve for what has several; one row a layer."""
    layers = table["layer"].drop_duplicates().tolist()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6 * len(layers) + 0.2), layout="constrained")
        grid = figure.subplots(len(layers), 2, squeeze=False)
        for row, layer in zip(grid, layers, strict=True):
            here = table[table["layer"] == layer]
            draw_frontier(row[0], here[here["variant"] != "mean"], "fvu", colours)
            draw_frontier(row[1], here, "loss_recovered", colours)
            row[0].set_title(f"Layer {layer}: L0 and variance unexplained")
            row[1].set_title("L0 and loss recovered")
            row[0].set_ylabel("FVU (lower is better, the mean has 1)")
            row[1].set_ylabel("loss recovered (higher is better)")
        legend_of_points(figure, table, colours)
    return figure


def draw_frontier(axes: Axes, table: pd.DataFrame, column: str, colours: Colours) -> None:
    """Draw a marker for what has an L0 or a rank, a line across for what has none (the mean, an affine map)."""
    sparse = table[(table["sparsity"] > 0) & table[column].notna()]
    for _, points in sparse.groupby("way", sort=False):
        curve = points.groupby("variant")[["sparsity", column]].mean().sort_values("sparsity")  # of the seeds
        last: Any = next(points.iloc[-1:].itertuples())
        dashes = "-" if last.kind == "trained" else "--"
        axes.plot(*curve.to_numpy().T, color=colour_of(last, colours), linestyle=dashes, linewidth=1, zorder=1.8)
    rows: Any = sparse.sort_values("kind", key=lambda kind: kind == "trained", kind="stable").itertuples()
    for row in rows:  # what was trained lies on top
        axes.plot(row.sparsity, getattr(row, column), **marker_of(row, colours))
    for way, points in sparse[~sparse["name"].isin(list(colours))].groupby("way", sort=False):
        name = str(way) if len(points) > 1 else points["name"].iloc[0]
        label(axes, name, (points["sparsity"].iloc[0], points[column].iloc[0]), (-3, 6))
    readable_log(axes, "x")
    if len(sparse):
        axes.set_xlim(sparse["sparsity"].min() / 2, sparse["sparsity"].max() * 3)
    axes.margins(y=0.08)
    axes.set_xlabel("L0 (active latents per token), rank of PCA")
    rows = table[~(table["sparsity"] > 0) & table[column].notna()].itertuples()
    for row in rows:
        value = getattr(row, column)
        axes.axhline(value, color=KIND_COLOURS["baseline"], linestyle="--", linewidth=0.9)
        label(axes, row.name, (0, value), (4, 3), xycoords=axes.get_yaxis_transform())
