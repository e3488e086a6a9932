"""Sets of transcoders that stand in for the MLPs of several layers together, as the runs left them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from stages.common.paths import Run
from stages.common.spans import LayersRun
from transcoders.circuits.writers import Transcoders
from transcoders.dictionary.crosslayer import files
from transcoders.dictionary.transcoder import Transcoder


class Replacements(NamedTuple):
    """Hold a set of transcoders, what it is called, and the runs of single layers that it is made of, if it is."""

    name: str
    transcoders: Transcoders
    runs: dict[int, Run]


def sets_of(
    variants: Sequence[str], layers: Sequence[int], crosslayer: Sequence[str], seed: int, device: torch.device
) -> Iterator[Replacements]:
    """Yield the sets of ``seed``, one at a time: every variant's over ``layers``, then the runs of ``crosslayer``."""
    for variant in variants:
        runs = {layer: Run(variant, layer, seed) for layer in layers}
        yield Replacements(variant, {layer: Transcoder.load(run.model, device) for layer, run in runs.items()}, runs)
    for run in map(LayersRun.named, crosslayer):
        if run.seed == seed:
            yield Replacements(f"{run.variant}-{run.span}", files.load(run.model, device), runs={})
