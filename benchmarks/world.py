"""A synthetic world whose features are known: who finds them, and who lets children swallow their parents?

After SynthSAEBench (arXiv 2602.14687): thousands of features in fewer dimensions, with firing rates after Zipf's law,
most of them in trees in which a child fires only with its parent and siblings exclude each other, and correlated
firings. Tokens are made while they are read, from a seed and a number: two million take no memory.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from ruamel.yaml import YAML
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.measure import over_seeds
from transcoders.activations.reader import Batch, LabelledBatch
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.intervals import paired
from transcoders.figures.style import STYLE, colours_of, legend_of_runs, save
from transcoders.training.config import config_of
from transcoders.training.settings import TrainSettings, VariantSettings
from transcoders.training.start import Start, initialise_, measure, sample_of
from transcoders.training.trainer import Job, Trainer

WAYS = ("topk", "matryoshka", "plt", "matryoshka_batchtopk", "ortsae")
PARAMS = Path(__file__).parent.parent / "params.yaml"
FOUND = 0.7
"""Cosine of a decoder row to a feature's direction from which on the dictionary has the feature."""
ALIKE = 0.5
"""Cosine from which on a latent is a child's: 0.71 is left of one that has absorbed a parent of equal size."""
HELD_OUT, CHUNK = 65_536, 4096
DEPTHS = ("roots", "children", "leaves", "alone")
TITLES = {
    "nmse": "NMSE",
    "l0": "L0",
    "roots": "roots",
    "children": "children",
    "leaves": "leaves",
    "alone": "in no tree",
    "absorption": "absorption",
    "contamination": "contamination",
    "hedging": "hedging",
    "f1": "F1",
    "unique": "unique",
}
SAMPLES = 10**6
"""Numbers of batches from here on are of tokens that are not trained on."""


class Shape(NamedTuple):
    """Say how large a world is: a quarter of a layer's width, so that rare features are seen often in little time."""

    d: int = 160
    trees: int = 32
    children: int = 4
    """Of each feature in a tree that is not at its lowest level."""
    levels: int = 3
    alone: int = 352
    """Features in no tree."""
    mean_l0: float = 8.5
    zipf: float = 0.5
    with_child: float = 0.8
    """Share of a parent's firings with exactly one child."""
    rank: int = 25
    correlated: float = 0.3
    """Share of the variance of what decides a firing that all features draw from ``rank`` common causes."""
    spread: float = 0.2
    """Activations are uniform within 1 ± so much."""


class World(NamedTuple):
    """Hold the features: roots of trees first, then those in no tree, then the trees level by level."""

    shape: Shape
    depth: Int[Tensor, "features"]
    """0 for a root, -1 for a feature in no tree."""
    threshold: Float[Tensor, "bases"]
    """What the standard normal of a root or a lone feature has to exceed for it to fire."""
    causes: Float[Tensor, "rank bases"]
    x: Float[Tensor, "features d"]
    """Unit vectors."""
    y: Float[Tensor, "features d"]

    def children_of(self, level: int) -> slice:
        """Return the features of a level below the roots, those of one parent next to each other."""
        before = sum(self.shape.trees * self.shape.children**n for n in range(1, level))
        start = len(self.threshold) + before
        return slice(start, start + self.shape.trees * self.shape.children**level)

    def parents_of(self, level: int) -> slice:
        """Return the parents of the features of ``level``."""
        return slice(0, self.shape.trees) if level == 1 else self.children_of(level - 1)

    def activations(self, tokens: int, number: int) -> Float[Tensor, "tokens features"]:
        """Return what fires on the tokens of batch ``number``, and how strongly."""
        generator = torch.Generator().manual_seed(number)
        shape, bases = self.shape, len(self.threshold)
        common = torch.randn(tokens, shape.rank, generator=generator) @ self.causes
        decides = common + math.sqrt(1 - shape.correlated) * torch.randn(tokens, bases, generator=generator)
        fires = torch.zeros(tokens, len(self.depth), dtype=torch.bool)
        fires[:, :bases] = decides > self.threshold
        for level in range(1, shape.levels):
            parents = fires[:, self.parents_of(level)]
            place = torch.rand(parents.shape, generator=generator) / shape.with_child * shape.children
            chosen = place.long()[..., None] == torch.arange(shape.children)  # beyond the last one: none
            fires[:, self.children_of(level)] = (chosen & parents[..., None]).flatten(1)
        sizes = 1 + shape.spread * (2 * torch.rand(fires.shape, generator=generator) - 1)
        return fires * sizes

    def batch(self, tokens: int, number: int) -> Batch:
        """Return the tokens of batch ``number``."""
        activations = self.activations(tokens, number)
        return Batch(activations @ self.x, activations @ self.y)


class Reader:
    """Give the tokens of a world in batches, as the trainer reads them."""

    seconds_waited = 0.0

    def __init__(self, world: World, batch_size: int, tokens: int, seed: int) -> None:
        self._world, self.batch_size = world, batch_size
        self.tokens, self.batches_per_epoch = tokens, tokens // batch_size
        self._first = seed * SAMPLES

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yield batches from number ``first`` on."""
        while True:
            yield self._world.batch(self.batch_size, self._first + first)
            first += 1


class Scores(NamedTuple):
    """Say what a dictionary made of a world."""

    nmse: float
    l0: float
    roots: float
    """Mean cosine to the decoder rows that are matched to the roots, and so on."""
    children: float
    leaves: float
    alone: float
    absorption: float
    """Mean over parents that are found of P(silent | with a child) - P(silent | alone)."""
    contamination: float
    """Mean cosine of children's latents, of those that are ``ALIKE`` their child, to the parent's direction."""
    hedging: float
    """Mean over parents that are found of the cosine of their latent to the sum of their children's directions."""
    f1: float
    """Mean over living latents, as detectors of the features that they detect best."""
    unique: float
    """Features that are detected best by some latent, for each living latent."""


def world_of(shape: Shape, seed: int) -> World:
    """Draw a world."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [shape.trees * shape.children**level for level in range(shape.levels)]
    bases = shape.trees + shape.alone
    depth = [torch.zeros(shape.trees), torch.full((shape.alone,), -1.0)]
    depth += [torch.full((size,), float(level)) for level, size in enumerate(sizes[1:], 1)]
    weight = torch.arange(1, bases + 1).double() ** -shape.zipf
    weight = weight[torch.randperm(bases, generator=generator)]
    below = sum(shape.with_child**level for level in range(shape.levels))  # firings of a tree for one of its root
    rate = weight * shape.mean_l0 / (weight[: shape.trees].sum() * below + weight[shape.trees :].sum())
    causes = normalize(torch.randn(shape.rank, bases, generator=generator), dim=0) * math.sqrt(shape.correlated)
    x, y = (normalize(torch.randn(bases + sum(sizes[1:]), shape.d, generator=generator), dim=1) for _ in range(2))
    threshold = torch.special.ndtri(1 - rate.clamp(max=0.5)).float()
    return World(shape, torch.cat(depth).long(), threshold, causes, x, y)


def start_of(world: World, seed: int) -> Start:
    """Return what latents are initialised from."""
    first = world.batch(CHUNK * 8, (seed + 1) * SAMPLES - 1)
    unlabelled = np.zeros(len(first.x), np.int32)
    sample = [LabelledBatch(first.x, first.y, unlabelled, unlabelled)]
    return Start(measure(sample), sample_of(sample), seed)


def untrained(world: World, settings: TrainSettings, seed: int) -> Transcoder:
    """Return the dictionary that training starts from: what any score of a trained one stands beside."""
    start = start_of(world, seed)
    model = Transcoder(config_of(settings, VariantSettings(), world.shape.d, start.statistics, {}))
    initialise_(model, start)
    return model.requires_grad_(False)


def train(world: World, settings: TrainSettings, variant: VariantSettings, tokens: int, seed: int) -> Transcoder:
    """Train a dictionary on so many tokens, each of which is seen once."""
    start = start_of(world, seed)
    config = config_of(settings, variant, world.shape.d, start.statistics, {})
    reader = Reader(world, settings.batch_size, tokens, seed)
    with TemporaryDirectory() as folder:
        held_out = [world.batch(2048, (seed + 1) * SAMPLES - 2)]
        job = Job(config, settings, variant, reader, start, held_out, Path(folder) / "c", torch.device("cpu"), 10**6)
        return Trainer(job).train().model.requires_grad_(False)


class Counts(NamedTuple):
    """Hold on how many tokens features fire, latents do, and what parents' latents do then."""

    both: Float[Tensor, "latents features"]
    latents: Float[Tensor, "latents"]
    features: Float[Tensor, "features"]
    parents: Float[Tensor, "two parents"]
    """With a child, and alone."""
    silent: Float[Tensor, "two parents"]
    """Of these, those on which the parent's latent is silent."""


@torch.no_grad()
def scores(model: Transcoder, world: World, tokens: int = HELD_OUT) -> Scores:
    """Compare a dictionary with the features, on ``tokens`` that it was not trained on."""
    cosine, levels = normalize(model.W_dec) @ world.y.T, range(1, world.shape.levels)
    features = torch.arange(len(world.y))
    parents = torch.cat([features[world.parents_of(level)] for level in levels])
    children = torch.cat([features[world.children_of(level)] for level in levels]).view(-1, world.shape.children)
    best = cosine.max(0)
    latents, found = best.indices[parents], best.values[parents] >= FOUND
    nmse, counts = _count(model, world, parents, latents, tokens)
    with_child, alone = counts.silent / counts.parents
    usable = found & (counts.parents > 0).all(0)
    of_parents = cosine[best.indices[children], parents[:, None]][best.values[children] >= ALIKE]
    together = normalize(world.y[children].sum(1))
    hedging = (normalize(model.W_dec[latents]) * together).sum(1)[found]
    rows, columns = linear_sum_assignment(-cosine.abs().numpy())
    matched = torch.zeros(len(world.y))
    matched[columns] = cosine.abs()[rows, columns]
    lowest, depth = world.shape.levels - 1, world.depth
    kinds = (depth == 0, (depth > 0) & (depth < lowest), depth == lowest, depth == -1)
    f1 = (2 * counts.both / (counts.latents[:, None] + counts.features).clamp(min=1))[counts.latents > 0]
    detected = f1.max(1)
    return Scores(
        nmse,
        float(counts.latents.sum()) / (tokens // CHUNK * CHUNK),
        *(float(matched[kind].mean()) for kind in kinds),
        float((with_child - alone)[usable].mean()),
        float(of_parents.mean()),
        float(hedging.mean()),
        float(detected.values.mean()),
        len(detected.indices.unique()) / len(f1),
    )


def _count(
    model: Transcoder,
    world: World,
    parents: Int[Tensor, "parents"],
    their_latents: Int[Tensor, "parents"],
    tokens: int,
) -> tuple[float, Counts]:
    """Return the error, as a share of the energy of y, and who fires with whom."""
    latents, features = model.config.d_hidden, len(world.y)
    shapes = (latents, features), (latents,), (features,), (2, len(parents)), (2, len(parents))
    counts = Counts(*map(torch.zeros, shapes))
    error = energy = 0.0
    for number in range(tokens // CHUNK):
        activations = world.activations(CHUNK, -number - 1)
        x, y = activations @ world.x, activations @ world.y
        encoded = model.encode(x)
        error += float((model.decode(encoded, x) - y).square().sum())
        energy += float(y.square().sum())
        on, fires = encoded.dense() > 0, activations > 0
        of_parents = [
            fires[:, world.children_of(level)].unflatten(1, (-1, world.shape.children)).any(2)
            for level in range(1, world.shape.levels)
        ]
        with_child = torch.cat(of_parents, dim=1)
        here = torch.stack([fires[:, parents] & with_child, fires[:, parents] & ~with_child])
        sums = on.T.float() @ fires.float(), on.sum(0), fires.sum(0), here.sum(1), (here & ~on[:, their_latents]).sum(1)
        for total, part in zip(counts, sums, strict=True):
            total += part
    return error / energy, counts


def run(tokens: int, drawing: Path, seeds: int = 3) -> list[str]:
    """Return a row for each score: of the untrained and the plain dictionary, and of what the others have beyond it.

    Each seed has a world of its own, the same for all ways to train; intervals (95 %) are Student's t over seeds.
    """
    variants, shape = YAML(typ="safe").load(PARAMS)["variants"], Shape()
    settings = TrainSettings(d_hidden="8x", k=round(shape.mean_l0), epochs=1, validate_every=10**6)
    of_start: list[Scores] = []
    results: dict[str, list[Scores]] = {name: [] for name in WAYS}
    for seed in range(seeds):
        world = world_of(shape, seed)
        of_start.append(scores(untrained(world, settings, seed), world))
        for name, of_seeds in results.items():
            of_seeds.append(scores(train(world, settings, VariantSettings(**variants[name]), tokens, seed), world))
    save(draw(results), drawing)
    return rows_of(of_start, results)


def rows_of(of_start: Sequence[Scores], results: Mapping[str, Sequence[Scores]]) -> list[str]:
    """Return a row for each score; ``results`` are of the plain way first, a score of each seed."""
    plain, *others = (pd.DataFrame(of_seeds) for of_seeds in results.values())
    rows = []
    for score, of_untrained in pd.DataFrame(of_start).items():
        differences = [with_interval(of_way[score], plain[score]) for of_way in others]
        unknown = of_untrained.isna().any()  # where no parent or no child is found by chance
        cells = ["–" if unknown else over_seeds(of_untrained.tolist()), over_seeds(plain[score].tolist()), *differences]
        rows.append(f"| {TITLES[str(score)]} | {' | '.join(cells)} |".replace("-", "−"))
    return rows


def with_interval(ours: pd.Series, theirs: pd.Series) -> str:
    """Return the mean difference over seeds and its interval, in bold where that excludes 0."""
    mean, low, high = paired(ours, theirs)
    text = f"{mean:+.3f} [{low:.3f}, {high:.3f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def draw(results: Mapping[str, Sequence[Scores]]) -> Figure:
    """Draw how well features are found by their depth, and contamination over the error, a point a seed."""
    colours = colours_of(f"{name}-{seed}" for name, of_seeds in results.items() for seed in range(len(of_seeds)))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, of_seeds in results.items():
            colour = colours[f"{name}-0"]
            for of_seed in of_seeds:
                left.plot(DEPTHS, [getattr(of_seed, depth) for depth in DEPTHS], "o-", color=colour, linewidth=1)
                right.plot(of_seed.nmse, of_seed.contamination, "o", color=colour, markersize=6)
        left.set(title="How well features are found", ylabel="mean |cosine| of matched rows", ylim=(0, 1.04))
        left.set_xticks(range(len(DEPTHS)), [TITLES[depth] for depth in DEPTHS])
        right.set(
            title="Contamination and error",
            xlabel="error, as a share of y's energy",
            ylabel="cosine of children's latents to the parent",
        )
        right.margins(x=0.2)
        legend_of_runs(figure, colours)
    return figure
