"""Dose and response: how far holding latents moves the answer's logit and the whole prediction."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from transcoders.figures.style import PALETTE, STYLE, legend_below

GREY = "#8C8C8C"


def dose_curves(table: pd.DataFrame) -> Figure:
    """Draw the change of the answer's logit and the KL divergence over the dose, as means over prompts.

    ``table`` has columns transcoders, prompt, group (none, chosen, random), dose, logit and kl.
    """
    keys = ["transcoders", "prompt"]
    alone = table[table["group"] == "none"].set_index(keys)["logit"].rename("alone")
    held = table[table["group"] != "none"].join(alone, on=keys)
    held = held.assign(change=held["logit"] - held["alone"])
    names = list(dict.fromkeys(held["transcoders"]))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for axes, column, label in ((left, "change", "change of the answer's logit"), (right, "kl", "KL (nats)")):
            for colour, name in zip(PALETTE * len(names), names, strict=False):
                of = held[held["transcoders"] == name].groupby(["group", "dose"])[column].mean()
                for group, style in (("chosen", "o-"), ("random", "o:")):
                    if group in of.index.get_level_values(0):
                        means = of[group]
                        text = f"{name}, held latents" if group == "chosen" else f"{name}, random latents"
                        axes.plot(means.index, means.to_numpy(), style, color=colour, label=text, markersize=4)
            axes.axhline(0, color=GREY, linewidth=0.8)
            axes.set(xlabel="dose (0: ablated, 1: the value in the prompt)", ylabel=label)
        prompts = held["prompt"].nunique()
        figure.suptitle(f"Holding latents at a dose: mean over {prompts} prompts")
        legend_below(figure, [line for line in left.get_lines() if not line.get_label().startswith("_")])
    return figure
