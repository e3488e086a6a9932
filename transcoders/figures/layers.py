"""The figure of cross-layer transcoders: what they leave unexplained at each layer, and where their latents write."""

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from transcoders.figures.style import KIND_COLOURS, STYLE, Colours

DASHES = {"affine": "--"}
"""Of baselines; PCA is dash-dotted."""


def errors_by_layer(layers: pd.DataFrame, runs: pd.DataFrame, colours: Colours) -> Figure:
    """Draw FVU, dead latents and the share of decoders' norm that goes to later layers, layer by layer.

    ``layers`` has a row for each run or baseline at each layer, ``runs`` one for each of them.
    """
    kinds = dict(zip(runs["name"], runs["kind"], strict=True))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.8), layout="constrained")
        axes = figure.subplots(1, 3)
        for name in (name for name in kinds if name != "mean"):
            rows = layers[layers["name"] == name]
            if kinds[name] == "baseline":
                style = DASHES.get(name, "-.")
                axes[0].plot(rows["layer"], rows["fvu"], style, color=KIND_COLOURS["baseline"], label=name)
                continue
            axes[0].plot(rows["layer"], rows["fvu"], "o-", markersize=3, color=colours[name], label=name)
            axes[1].plot(rows["layer"], rows["dead_fraction"], "o-", markersize=3, color=colours[name])
            axes[2].plot(rows["layer"], rows["later_share"], "o-", markersize=3, color=colours[name])
        _finish(axes[0], "Variance unexplained, held-out", "FVU (lower is better)")
        _finish(axes[1], "Latents that never fire, held-out", "share of the layer's latents")
        _finish(axes[2], "Written to later layers", "share of the squared decoder norm")
        figure.legend(loc="outside lower center", ncols=4)
    return figure


def _finish(axes: Axes, title: str, what: str) -> None:
    axes.set(title=title, xlabel="layer", ylabel=what)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
