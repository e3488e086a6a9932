"""What all figures share: colours, axes, legends, and saving with the same bytes for the same input."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator
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


def colours_of(run_names: Iterable[str], ways: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give every run a colour, by its place among the runs; the seeds of a variant and layer share one.

    ``ways`` says which way to train each variant and layer is of (``tables.ways_of``): those of one way have shades of
    one colour, the last the fullest.
    """
    kinds = {name: name.rsplit("-", 1)[0] for name in run_names}
    members: dict[str, list[str]] = {}
    for kind in dict.fromkeys(kinds.values()):
        members.setdefault((ways or {}).get(kind, kind), []).append(kind)
    colours = {}
    for place, of_way in enumerate(members.values()):
        for kind, white in zip(of_way, np.linspace(0.6, 0, len(of_way) + 1)[1:], strict=True):
            colours[kind] = _paler(PALETTE[place % len(PALETTE)], white)
    return {name: colours[kind] for name, kind in kinds.items()}


def _paler(colour: str, share: float) -> str:
    """Return ``colour`` with ``share`` of white mixed in."""
    red, green, blue = (part + share * (1 - part) for part in to_rgb(colour))
    return to_hex((red, green, blue)).upper()


def legend_names(colours: Colours) -> dict[str, str]:
    """Return each legend entry's colour: runs, or variant and layer where there are several seeds."""
    kinds = {name: name.rsplit("-", 1)[0] for name in colours}
    several = len(set(kinds.values())) < len(kinds)
    return {kinds[name] if several else name: colour for name, colour in colours.items()}


def label(
    axes: Axes,
    text: str,
    place: tuple[float, float],
    offset: tuple[float, float],
    xycoords: str | Transform = "data",
) -> None:
    """Write a grey name beside a place, over the grid and under the markers."""
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
    """Return the look of a dictionary's point: its shape stands for the kind, its colour for the run."""
    return {
        "marker": MARKERS[row.kind],
        "color": colour_of(row, colours),
        "linestyle": "none",
        "markersize": 7,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    }


def colour_of(row: Any, colours: Colours) -> str:
    """Return the colour of a run, or of another row's kind."""
    return colours.get(row.name) or KIND_COLOURS[row.kind]


def readable_log(axes: Axes, name: Literal["x", "y"]) -> None:
    """Give an axis a log scale with plain numbers at 1, 2, 3 and 5 times the powers of ten."""
    axis = axes.xaxis if name == "x" else axes.yaxis
    (axes.set_xscale if name == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: "")


def legend_of_runs(figure: Figure, colours: Colours) -> None:
    """Name every run, by the colour of its line."""
    handles = [Line2D([], [], color=colour, label=name) for name, colour in legend_names(colours).items()]
    legend_below(figure, handles)


def legend_of_kinds(figure: Figure, table: pd.DataFrame) -> None:
    """Name the kinds of what is not a run, by their colours."""
    kinds = [kind for kind in KIND_COLOURS if kind in set(table["kind"])]
    legend_below(figure, [Patch(color=KIND_COLOURS[kind], label=kind) for kind in kinds])


def legend_of_points(figure: Figure, table: pd.DataFrame, colours: Colours) -> None:
    """Name every way to train, or its only run, with one entry for each other kind (whose points carry their names)."""
    sparse = table[table["sparsity"] > 0]
    trained = sparse["name"].isin(list(colours))
    handles = []
    for way, rows in sparse[trained].groupby("way", sort=False):
        row: Any = next(rows.iloc[-1:].itertuples())
        handles.append(Line2D([], [], label=way if len(rows) > 1 else row.name, **marker_of(row, colours)))
    kinds = sparse[~trained].drop_duplicates("kind").itertuples()
    handles += [Line2D([], [], label=row.kind, **marker_of(row, colours)) for row in kinds]
    legend_below(figure, handles)


def legend_below(figure: Figure, handles: list[Any]) -> None:
    """Write one legend below the figure, as wide as the figure allows."""
    columns = max(1, int(figure.get_figwidth() / 1.7))
    if handles:
        ncols = min(len(handles), columns)
        figure.legend(handles=handles, loc="outside lower center", ncols=ncols)


def save(figure: Figure, stem: Path) -> None:
    """Write ``stem``.png and ``stem``.svg without dates or versions: equal figures, equal bytes."""
    with mpl.rc_context(STYLE):
        figure.savefig(stem.with_suffix(".png"), metadata={"Software": None})
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
