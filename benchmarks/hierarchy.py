"""Recovery of a planted hierarchy: who finds parent and child features, and who merges them?

A child feature fires only where its parent does. With too few active latents to name both, a plain
dictionary learns "parent plus child" directions and its parent latents go silent where children fire
(feature absorption, arXiv 2409.14507); nested training must keep the parents in its first prefix
(arXiv 2503.17547). Scores are mean largest cosines of true decoder directions to learned ones.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from transcoders.activations.reader import Batch
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.latents import largest_cosines
from transcoders.training.settings import TrainSettings, VariantSettings
from transcoders.training.start import Start, Statistics
from transcoders.training.trainer import Job, Trainer

PARENTS, CHILDREN, D = 20, 4, 48
NESTED = {"prefixes": (0.25, 1), "prefix_k": (0.5, 1)}
VARIANTS = {
    "topk": VariantSettings(),
    "joint": VariantSettings(**NESTED),
    "progressive": VariantSettings(**NESTED, training="progressive"),
    "progressive, not frozen": VariantSettings(**NESTED, training="progressive", previous_lr_scale=1.0),
}


class World(NamedTuple):
    """Hold decoder directions of the planted features, and tokens made of them."""

    parents: Float[Tensor, "parents d"]
    children: Float[Tensor, "children d"]
    parent_fires: Float[Tensor, "tokens parents"]
    data: Batch


class Recovery(NamedTuple):
    """Say how well a dictionary knows the planted features; 1 is perfectly."""

    parents: float
    children: float
    first_prefix: float
    """Parents among the latents of the first prefix (for a plain one: its latents that fire most)."""
    absorbed: float
    """Share of a parent's tokens on which its best latent is silent."""


def world(tokens: int, seed: int) -> World:
    """Make tokens on a tenth of which each parent fires, mostly with one of its children."""
    generator = torch.Generator().manual_seed(seed)

    def directions(count: int) -> Tensor:
        return normalize(torch.randn(count, D, generator=generator))

    def size(*shape: int) -> Tensor:
        return 1 + torch.rand(*shape, generator=generator)

    parents = (torch.rand(tokens, PARENTS, generator=generator) < 0.1) * size(tokens, PARENTS)
    child = torch.randint(CHILDREN + 1, (tokens, PARENTS), generator=generator)  # the last: no child
    chosen = torch.nn.functional.one_hot(child, CHILDREN + 1)[..., :-1] * (parents > 0)[..., None]
    children = (chosen * size(tokens, PARENTS, CHILDREN)).reshape(tokens, -1) * 0.7
    x = parents @ directions(PARENTS) + children @ directions(PARENTS * CHILDREN)
    of_parents, of_children = directions(PARENTS), directions(PARENTS * CHILDREN)
    return World(of_parents, of_children, parents, Batch(x, parents @ of_parents + children @ of_children))


class _Reader:
    """Give the tokens of a world in batches, as the trainer reads them."""

    seconds_waited = 0.0

    def __init__(self, data: Batch, batch_size: int) -> None:
        self._data, self.batch_size = data, batch_size
        self.tokens, self.batches_per_epoch = len(data.x), len(data.x) // batch_size

    def batches(self, first: int = 0):
        while True:
            order = torch.from_numpy(np.random.default_rng(first // self.batches_per_epoch).permutation(self.tokens))
            start = first % self.batches_per_epoch * self.batch_size
            rows = order[start : start + self.batch_size]
            yield Batch(self._data.x[rows], self._data.y[rows])
            first += 1


def train(variant: VariantSettings, planted: World, seed: int, epochs: int = 20, k: int = 3) -> Transcoder:
    """Train a dictionary with as many latents as there are features, and fewer active ones than features fire."""
    data, d_hidden = planted.data, PARENTS * (1 + CHILDREN)
    d_hidden -= d_hidden % 4
    settings = TrainSettings(
        d_hidden=d_hidden,
        k=k,
        epochs=epochs,
        batch_size=256,
        learning_rate=3e-3,
        dead_after_tokens=5000,
        log_every=100,
        validate_every=10**6,
    )
    scales = [float(part.square().mean().sqrt()) for part in data]
    config = TranscoderConfig(
        d_in=D,
        d_out=D,
        d_hidden=d_hidden,
        k=k,
        prefixes=variant.sizes(d_hidden),
        prefix_k=variant.ks(k),
        input_scale=scales[0],
        output_scale=scales[1],
    )
    start = Start(Statistics(data.x.mean(0), data.y.mean(0), *scales), data, seed)
    reader = _Reader(data, settings.batch_size)
    with TemporaryDirectory() as folder:
        held_out, checkpoint = [Batch(data.x[:1000], data.y[:1000])], Path(folder) / "c"
        job = Job(config, settings, variant, reader, start, held_out, checkpoint, torch.device("cpu"), 10**6)
        return Trainer(job).train().model.requires_grad_(False)


def recovery(model: Transcoder, planted: World) -> Recovery:
    """Compare the decoder rows with the planted directions."""
    latents = model.encode(planted.data.x).dense() > 0
    first = model.config.d_hidden // 4
    often = latents.float().mean(0).topk(first).indices
    rows = model.W_dec[:first] if model.config.prefixes else model.W_dec[often]
    best = (normalize(planted.parents) @ model.W_dec.T).argmax(1)
    fires = planted.parent_fires > 0
    silent = (fires & ~latents[:, best]).sum(0) / fires.sum(0)
    return Recovery(
        float(largest_cosines(planted.parents, model.W_dec).mean()),
        float(largest_cosines(planted.children, model.W_dec).mean()),
        float(largest_cosines(planted.parents, rows).mean()),
        float(silent.mean()),
    )


def run(seeds: int = 3) -> list[str]:
    """Return a row for each variant: means over seeds."""
    rows = []
    for name, variant in VARIANTS.items():
        recoveries = []
        for seed in range(seeds):
            planted = world(20_000, seed)
            recoveries.append(recovery(train(variant, planted, seed), planted))
        means = np.mean(recoveries, axis=0)
        rows.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in means) + " |")
    return rows
