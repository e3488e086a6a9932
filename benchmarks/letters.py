"""How well each layer's x and y tell the first letter of a word: where the first-letter task can be put at all."""

from pathlib import Path

import numpy as np
import torch

from transcoders.absorption.settings import AbsorptionSettings
from transcoders.absorption.words import Task, fit_probes, read_words
from transcoders.language.model import load_bridge, load_tokenizer
from transcoders.language.settings import HookSettings
from transcoders.language.taps import resolve_tap
from transcoders.language.tokens import context_start

WORDS = 3000


def run(model: Path, device: torch.device) -> list[str]:
    """Return a row for each layer: mean F1 over letters of probes on x, on y, and on y with the letters dealt anew."""
    bridge, tokenizer = load_bridge(model, device), load_tokenizer(model)
    start = context_start(tokenizer, None).ids
    settings = AbsorptionSettings(words=WORDS)
    rows = []
    for layer in range(len(bridge.blocks)):
        task = read_words(bridge, resolve_tap(bridge, layer, HookSettings()), tokenizer, start, settings)
        shuffled = np.random.default_rng(0).permutation(task.words).tolist()
        tasks = (task._replace(y=task.x), task, task._replace(words=shuffled))
        on_x, on_y, by_chance = (mean_f1(each) for each in tasks)
        rows.append(f"| {layer} | {on_x:.2f} | {on_y:.2f} | {by_chance:.2f} |")
    return rows


def mean_f1(task: Task) -> float:
    """Return the mean over letters of the F1 of a probe on the test words."""
    return float(fit_probes(task).f1.mean())
