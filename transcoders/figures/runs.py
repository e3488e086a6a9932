"""The figures of stage ``plot``, drawn by matplotlib for papers; each function returns a figure."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator
from matplotlib.transforms import Transform

# Okabe and Ito's colours that show on white and on black, then three of Paul Tol's and a brown; the
# templates in .dvc/plots use the same ones, so that a run keeps its colour everywhere.
PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#882255",
    "#999933",
    "#44AA99",
    "#7F5539",
)
KIND_COLOURS = {"baseline": "#8C8C8C", "official": "#5F7599"}
MARKERS = {"trained": "o", "baseline": "s", "official": "D"}
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # names come from users and may hold a $
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E7EB",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.4,
    "savefig.dpi": 200,
    "svg.hashsalt": "plot",
}

Colours = Mapping[str, str]


class Panel(NamedTuple):
    """One panel of the training curves."""

    column: str
    title: str
    label: str
    log: bool = False
    percent: bool = False


PANELS = (
    Panel("loss", "Training loss", "loss (normalised units)", log=True),
    Panel("nmse", "Normalised MSE", "NMSE"),
    Panel("l0", "L0", "active latents per token"),
    Panel("dead_fraction", "Dead latents", "share of all latents", percent=True),
    Panel("learning_rate", "Learning rate", "learning rate"),
    Panel("gradient_norm", "Gradient norm before clipping", "L2 norm", log=True),
)


def colours_of(run_names: Iterable[str]) -> dict[str, str]:
    """Each run's colour, by its place among the runs; the seeds of a variant and layer share one."""
    kinds = {name: name.rsplit("-", 1)[0] for name in run_names}
    places = {kind: place for place, kind in enumerate(dict.fromkeys(kinds.values()))}
    return {name: PALETTE[places[kind] % len(PALETTE)] for name, kind in kinds.items()}


def legend_names(colours: Colours) -> dict[str, str]:
    """Each legend entry's colour: runs, or variant and layer where there are several seeds."""
    kinds = {name: name.rsplit("-", 1)[0] for name in colours}
    several = len(set(kinds.values())) < len(kinds)
    return {kinds[name] if several else name: colour for name, colour in colours.items()}


def training_curves(curves: pd.DataFrame, colours: Colours) -> Figure:
    """Loss, NMSE, L0, dead latents, learning rate and gradient norm over training tokens."""
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
    """One curve a run; the NMSE also on the validation documents."""
    pale = 0.35 if panel.column == "nmse" else 1.0
    for name, curve in curves.groupby("run", sort=False):
        axes.plot(curve["tokens"], curve[panel.column], color=colours[str(name)], alpha=pale)
        if panel.column == "nmse":
            validation = curve.dropna(subset=["validation_nmse"])
            axes.plot(
                validation["tokens"],
                validation["validation_nmse"],
                color=colours[str(name)],
                marker="o",
                markersize=3,
            )
    if panel.column == "nmse":
        axes.plot([], [], color="#6E6E6E", alpha=pale, label="training")
        axes.plot([], [], color="#6E6E6E", marker="o", markersize=3, label="validation")
        axes.legend()
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
    """How often the latents fire: a histogram over log10 of the frequency, and the silent ones."""
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
    """How well the latents' descriptions tell where they fire: a histogram of the scores, with chance marked."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.subplots()
        draw_histograms(axes, scores, "score", colours)
        axes.axvline(0.5, color="0.5", linewidth=0.8, linestyle=":")
        axes.annotate("chance", (0.5, 1), (-3, -3), ("data", "axes fraction"), "offset points", ha="right", va="top")
        axes.set_title("How well descriptions tell unseen contexts")
        axes.set_xlabel("detection score (balanced accuracy)")
        legend_of_runs(figure, colours)
    return figure


def draw_histograms(axes: Axes, bins: pd.DataFrame, place: str, colours: Colours) -> None:
    """Shares of latents by the bins' centres, a curve of steps for each run."""
    for name, table in bins.groupby("run", sort=False):
        axes.fill_between(table[place], table["share"], step="mid", color=colours[str(name)], alpha=0.1)
        axes.step(table[place], table["share"], where="mid", color=colours[str(name)])
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    axes.set_ylabel("share of latents per bin")


def draw_never(axes: Axes, never: pd.DataFrame, colours: Colours) -> None:
    """A stem a run, left of the histogram, for the latents that never fire."""
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
    """FVU and loss recovered of runs, baselines and official dictionaries; one row a layer."""
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
    """Horizontal bars from top to bottom in the table's order, each with its value."""
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
    """FVU and loss recovered over sparsity; one row a layer."""
    layers = table["layer"].drop_duplicates().tolist()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6 * len(layers) + 0.2), layout="constrained")
        grid = figure.subplots(len(layers), 2, squeeze=False)
        for row, layer in zip(grid, layers, strict=True):
            here = table[table["layer"] == layer]
            draw_frontier(row[0], here, "fvu", colours)
            draw_frontier(row[1], here, "loss_recovered", colours)
            row[0].set_title(f"Layer {layer}: L0 and variance unexplained")
            row[1].set_title("L0 and loss recovered")
            row[0].set_ylabel("FVU (lower is better)")
            row[1].set_ylabel("loss recovered (higher is better)")
        legend_of_points(figure, table, colours)
    return figure


def draw_frontier(axes: Axes, table: pd.DataFrame, column: str, colours: Colours) -> None:
    """A marker for what has an L0; a line across for what has none (the mean, an affine map)."""
    sparse = table[(table["l0"] > 0) & table[column].notna()]
    rows: Any = sparse.itertuples()
    for row in rows:
        value = getattr(row, column)
        axes.plot(row.l0, value, **marker_of(row, colours))
        if row.name not in colours:
            label(axes, row.name, (row.l0, value), (-3, 6))
    readable_log(axes, "x")
    if len(sparse):
        axes.set_xlim(sparse["l0"].min() / 2, sparse["l0"].max() * 3)
    axes.margins(y=0.08)
    axes.set_xlabel("L0 (active latents per token)")
    rows = table[~(table["l0"] > 0) & table[column].notna()].itertuples()
    for row in rows:
        value = getattr(row, column)
        axes.axhline(value, color=KIND_COLOURS["baseline"], linestyle="--", linewidth=0.9)
        label(axes, row.name, (0, value), (4, 3), xycoords=axes.get_yaxis_transform())


def label(
    axes: Axes,
    text: str,
    place: tuple[float, float],
    offset: tuple[float, float],
    xycoords: str | Transform = "data",
) -> None:
    """A grey name beside a place, over the grid and under the markers."""
    halo = [withStroke(linewidth=2, foreground="white")]
    axes.annotate(
        text,
        place,
        xytext=offset,
        xycoords=xycoords,
        textcoords="offset points",
        fontsize=8,
        color="#5A5A5A",
        path_effects=halo,
        zorder=1.9,
    )


def marker_of(row: Any, colours: Colours) -> dict[str, Any]:
    """The point of a dictionary: its shape says the kind, its colour the run."""
    return {
        "marker": MARKERS[row.kind],
        "color": colour_of(row, colours),
        "linestyle": "none",
        "markersize": 7,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    }


def colour_of(row: Any, colours: Colours) -> str:
    """A run's own colour, or its kind's."""
    return colours.get(row.name) or KIND_COLOURS[row.kind]


def readable_log(axes: Axes, which: str) -> None:
    """A log scale with plain numbers at 1, 2, 3 and 5 times the powers of ten."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: "")


def legend_of_runs(figure: Figure, colours: Colours) -> None:
    """Every run's line."""
    handles = [Line2D([], [], color=colour, label=name) for name, colour in legend_names(colours).items()]
    legend_below(figure, handles)


def legend_of_kinds(figure: Figure, table: pd.DataFrame) -> None:
    """The colours of what is not a run."""
    kinds = [kind for kind in KIND_COLOURS if kind in set(table["kind"])]
    legend_below(figure, [Patch(color=KIND_COLOURS[kind], label=kind) for kind in kinds])


def legend_of_points(figure: Figure, table: pd.DataFrame, colours: Colours) -> None:
    """Every run, and one entry for each other kind (whose points carry their names)."""
    sparse = table[table["l0"] > 0]
    shown = {colours[name]: name for name in reversed(list(colours))}.values()  # one of several seeds
    runs = sparse[sparse["name"].isin(shown)].itertuples()
    kinds = sparse[~sparse["name"].isin(colours)].drop_duplicates("kind").itertuples()
    handles = [Line2D([], [], label=row.name, **marker_of(row, colours)) for row in runs]
    handles += [Line2D([], [], label=row.kind, **marker_of(row, colours)) for row in kinds]
    legend_below(figure, handles)


def legend_below(figure: Figure, handles: list[Any]) -> None:
    """One legend for the whole figure, as wide as the figure allows."""
    columns = max(1, int(figure.get_figwidth() / 1.7))
    if handles:
        ncols = min(len(handles), columns)
        figure.legend(handles=handles, loc="outside lower center", ncols=ncols)


def save(figure: Figure, stem: Path) -> None:
    """Write ``stem``.png and ``stem``.svg without dates or versions: equal figures, equal bytes."""
    with mpl.rc_context(STYLE):
        figure.savefig(stem.with_suffix(".png"), metadata={"Software": None})
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
