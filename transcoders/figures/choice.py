"""Which figures the results of a pipeline call for."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from transcoders.figures import classes, nested, runs
from transcoders.figures.style import Colours


def figures_of(tables: Mapping[str, pd.DataFrame], colours: Colours) -> dict[str, Figure]:
    """Draw, by name, every figure that the runs in ``tables`` call for: those of nested runs where there are any."""
    figures = {
        "training_curves": runs.training_curves(tables["curves"], colours),
        "firing_density": runs.firing_density(tables["density"], colours),
        "detection_scores": runs.detection_scores(tables["scores"], colours),
        "comparison": runs.comparison(tables["comparison"], colours),
        "frontier": runs.frontier(tables["comparison"], colours),
    }
    for layer, of_layer in tables["classes"].groupby("layer"):
        figures[f"word_classes_{layer}"] = classes.generality(of_layer, colours)
    groups, overlap, curves = tables["groups"], tables["overlap"], tables["curves"]
    of_nested = groups[groups.groupby("run")["group"].transform("max") > 1]
    if len(of_nested):
        figures["prefixes"] = nested.prefixes(tables["prefixes"], colours)
        figures["dead_by_group"] = nested.dead_by_group(of_nested, colours)
        figures["decoder_overlap"] = nested.overlap(overlap[overlap["run"].isin(of_nested["run"])])
    progressive = curves[curves.groupby("run")["phase"].transform("max") > 1]
    if len(progressive):
        figures["phases"] = nested.phases(progressive, colours)
    return figures
