"""The figure of word classes: how general the latents of a layer's dictionaries are for them."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from transcoders.figures.style import STYLE, Colours, legend_of_runs


def generality(classes: pd.DataFrame, colours: Colours) -> Figure:
    """Draw a row for each class and a dot for each dictionary, rings for the untrained one.

    ``classes`` is the table of what was measured at one layer; what has a colour by its name there is a run.
    """
    trained = {name: colours[name] for name in dict.fromkeys(classes["name"]) if name in colours}
    order = classes[classes["name"].isin(trained)].groupby("class")["generality"].mean().sort_values()
    row = {name: number for number, name in enumerate(order.index)}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 1.6 + 0.17 * len(order)), layout="constrained")
        axes = figure.subplots()
        for name, of_run in classes.groupby("name", sort=False):
            axes.plot(
                of_run["generality"],
                of_run["class"].map(row),
                "o",
                color=trained.get(str(name), "#6E6E6E"),
                markerfacecolor=None if name in trained else "white",
                markersize=4.5,
                alpha=0.85,
            )
        axes.set_yticks(range(len(order)), list(order.index))
        axes.tick_params(axis="y", labelsize="small")
        axes.set_ylim(-0.7, len(order) - 0.3)
        axes.set_xlim(left=0)
        axes.set(
            title="How well one latent tells words of a class that it was not chosen on",
            xlabel="F1 on unseen words (rings: the untrained dictionary)",
        )
        legend_of_runs(figure, trained)
    return figure
