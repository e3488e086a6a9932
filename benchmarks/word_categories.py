"""How well each layer's x and y tell the category of a word: where an absorption task can be put at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from transcoders.absorption.settings import AbsorptionSettings
from transcoders.absorption.words import Task, fit_probes, read_words
from transcoders.figures.style import PALETTE, STYLE, legend_below, save
from transcoders.language.model import load_bridge, load_tokenizer
from transcoders.language.settings import HookSettings
from transcoders.language.taps import resolve_tap
from transcoders.language.tokens import context_start

WORDS = 3000
TaskName = Literal["letters", "hypernyms"]
TITLES = {"letters": "Which letter does a word begin with?", "hypernyms": "What kind of thing does a noun name?"}


class LayerScores(NamedTuple):
    """Hold the mean F1 over categories of a layer's probes, on words that they did not see."""

    on_x: float
    on_y: float
    by_chance: float
    """On y, for categories dealt anew."""


def run(model: Path, device: torch.device, task_name: TaskName, drawing: Path) -> list[str]:
    """Return a row for each layer: mean F1 of probes on x, on y, and on y with the categories dealt anew."""
    bridge, tokenizer = load_bridge(model, device), load_tokenizer(model)
    start = context_start(tokenizer, None).ids
    settings = AbsorptionSettings(task=task_name, words=WORDS)
    of_layers = []
    for layer in range(len(bridge.blocks)):
        task = read_words(bridge, resolve_tap(bridge, layer, HookSettings()), tokenizer, start, settings)
        shuffled = np.random.default_rng(0).permutation(task.categories)
        tasks = (task._replace(y=task.x), task, task._replace(categories=shuffled))
        of_layers.append(LayerScores(*map(mean_f1, tasks)))
    save(draw(of_layers, task_name), drawing)
    return [f"| {layer} | {' | '.join(f'{f1:.2f}' for f1 in of)} |" for layer, of in enumerate(of_layers)]


def mean_f1(task: Task) -> float:
    """Return the mean over categories of the F1 of a probe on the test words."""
    return float(fit_probes(task).f1.mean())


def draw(of_layers: Sequence[LayerScores], task_name: TaskName) -> Figure:
    """Draw the mean F1 of each layer's probes on x and on y, over that of categories dealt anew."""
    names = ("x, what the MLP receives", "y, what it writes", f"y, {task_name} dealt anew")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6, 3.4), layout="constrained")
        axes = figure.subplots()
        for name, colour, values in zip(names, (*PALETTE[:2], "#8C8C8C"), zip(*of_layers, strict=True), strict=True):
            axes.plot(range(len(values)), values, "o-", label=name, color=colour, markersize=4)
        axes.set(xlabel="layer", ylabel=f"mean F1 over {task_name}", ylim=(0, 1), title=TITLES[task_name])
        axes.set_xticks(range(len(of_layers)))
        legend_below(figure, axes.get_lines())
    return figure
