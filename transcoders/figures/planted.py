"""The figure of the verdicts stage: what nested dictionaries make of planted features, and what that costs."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from transcoders.figures.style import STYLE, Colours, legend_of_runs

DRAWN = {"absorption": "absorption", "contamination": "contamination", "hedging": "hedging", "lost": "parents lost"}
"""Measures, all of which should be small, and what the figure calls them."""


def effects_and_frontier(judged: pd.DataFrame, runs: pd.DataFrame, colours: Colours) -> Figure:
    """Draw each variant's difference to the plain one with its interval, and contamination over the error of every run.

    ``judged`` is the table of verdicts, ``runs`` the one of runs; ``colours`` are by ``<variant>-<seed>``.
    """
    of_variant = {name.rsplit("-", 1)[0]: colour for name, colour in colours.items()}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_effects(left, judged, of_variant)
        for variant, rows in runs.groupby("variant", sort=False):
            right.plot(rows["nmse"], rows["contamination"], "o", color=of_variant[str(variant)], markersize=6)
        right.set_ylim(bottom=min(0, right.get_ylim()[0]))
        right.margins(x=0.2)
        right.set(
            title="Contamination and error, a point a seed",
            xlabel="NMSE on validation documents",
            ylabel="cosine of children's latents to the parent",
        )
        legend_of_runs(figure, colours)
    return figure


def _draw_effects(axes: Axes, judged: pd.DataFrame, colours: Colours) -> None:
    """Draw a row of differences for each measure, hollow where the verdict is undecided."""
    variants = list(dict.fromkeys(judged["variant"]))
    places = np.linspace(-0.28, 0.28, len(variants)) if len(variants) > 1 else np.zeros(len(variants))
    for row, measure in enumerate(DRAWN):
        for variant, place in zip(variants, places, strict=True):
            here = judged[(judged["measure"] == measure) & (judged["variant"] == variant)]
            for effect, low, high, verdict in here[["effect", "low", "high", "verdict"]].itertuples(index=False):
                colour = colours[variant]
                axes.plot([low, high], [row + place] * 2, color=colour, linewidth=1.6)
                filled = "white" if verdict == "undecided" else colour
                axes.plot([effect], [row + place], "o", color=colour, markerfacecolor=filled, markersize=5)
    axes.axvline(0, color="#6E6E6E", linewidth=0.7)
    axes.set_yticks(range(len(DRAWN)), list(DRAWN.values()))
    axes.set_ylim(len(DRAWN) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    against = ", ".join(dict.fromkeys(judged["against"]))
    axes.set(title="Hollow: undecided", xlabel=f"less than {against} (left) or more (right), 95 % intervals")
