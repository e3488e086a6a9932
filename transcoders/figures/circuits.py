"""The figure of the circuits stage: how many latents a faithful graph needs."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from transcoders.figures.style import STYLE, Colours, legend_of_runs, readable_log

POINTS = 60


def graph_sizes(table: pd.DataFrame, curves: pd.DataFrame, colours: Colours, share: float) -> Figure:
    """Draw faithfulness over latents kept, and the latents that each prompt needs for ``share`` of it.

    ``colours`` are by ``<variant>-<seed>``, as ``colours_of`` gives them.
    """
    by_variant = {name.rsplit("-", 1)[0]: colour for name, colour in colours.items()}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        judged = table[table["latents_needed"].notna()] if "latents_needed" in table else table.iloc[:0]
        for variant, colour in by_variant.items():
            prompts = judged.loc[judged["variant"] == variant, "prompt"]
            of_variant = curves[(curves["variant"] == variant) & curves["prompt"].isin(prompts)]
            if len(of_variant):
                _draw_curve(left, of_variant, "kept", colour=colour, style="-")
                _draw_curve(left, of_variant, "random_kept", colour=colour, style=":")
        left.axhline(share, color="#6E6E6E", linewidth=0.7)
        left.set_ylim(-0.25, 1.5)
        left.set(
            title="Kept latents (dotted: at random)",
            xlabel="latents kept (log scale)",
            ylabel="faithfulness, median over prompts",
        )
        readable_log(left, "x")
        left.set_xticks([10.0**n for n in range(5) if 10**n <= max(10, curves["latents"].max())])
        _draw_sizes(right, judged, by_variant)
        right.set(title=f"Latents for faithfulness {share:g}", ylabel="latents needed (log scale)")
        legend_of_runs(figure, colours)
    return figure


def _draw_curve(axes: Axes, curves: pd.DataFrame, column: str, colour: str, style: str) -> None:
    """Draw the median over prompts of the share of the way from no latents to all."""
    most = int(curves.groupby("prompt")["latents"].max().min())
    grid = np.geomspace(1, most, POINTS)
    shares = []
    for _, curve in curves.groupby("prompt"):
        none, every = curve["kept"].iloc[0], curve["kept"].iloc[-1]
        shares.append(np.interp(grid, curve["latents"], (curve[column] - none) / (every - none)))
    axes.plot(grid, np.median(shares, axis=0), color=colour, linestyle=style)


def _draw_sizes(axes: Axes, judged: pd.DataFrame, colours: Colours) -> None:
    """Draw a line per prompt through the variants, and each variant's median."""
    names = list(colours)
    if judged.empty:
        return
    wide = judged.pivot(index="prompt", columns="variant", values="latents_needed").clip(lower=1)
    wide = wide.reindex(columns=names)
    for _, row in wide.iterrows():
        axes.plot(range(len(names)), row, color="#B0B4BA", linewidth=0.7, zorder=1)
    for place, name in enumerate(names):
        axes.scatter([place] * len(wide), wide[name], s=14, color=colours[name], zorder=2)
        median = wide[name].median()
        axes.plot([place - 0.25, place + 0.25], [median, median], color=colours[name], linewidth=2.5)
        axes.annotate(f"{median:g}", (place + 0.27, median), va="center", fontsize=8)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.3)
    axes.grid(visible=False, axis="x")
    readable_log(axes, "y")
