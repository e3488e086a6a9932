"""Where every stage's inputs and outputs lie. Each path is spelled here, and as a dep or an out in dvc.yaml."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

MODEL = Path("data/model")
ACTIVATIONS = Path("data/activations")
DOCUMENTS = Path("data/documents.parquet")
CONTEXTS = Path("data/contexts.parquet")
COLLECTED = Path("data/collect.json")
SPLIT = Path("data/split.parquet")
OFFICIAL = Path("data/official.csv")
COMPARISON = Path("data/compare")
HYPOTHESES = "hypotheses.csv"
"""In the folder of each stage that judges: a row for each hypothesis, task and pair of variants."""
METRICS = Path("metrics")
PLOTS = Path("plots")
LIVE = Path("data/live")
"""Curves and costs of runs that go on, or went: for people, never an output."""


def store_of(layer: int) -> Path:
    """Return the activation store of ``layer``."""
    return ACTIVATIONS / f"layer_{layer}.zarr"


def clean_of(layer: int) -> Path:
    """Return the file of the clean run that evaluations of ``layer`` start from."""
    return Path("data/clean") / f"layer_{layer}.safetensors"


def words_of(layer: int) -> Path:
    """Return the file of the words' activations at ``layer``, and of the probes."""
    return Path("data/words") / f"layer_{layer}.safetensors"


def baselines_of(layer: int) -> Path:
    """Return the table of the baselines of ``layer``."""
    return Path("data/baselines") / f"layer_{layer}.csv"


def floor_of(layer: int) -> Path:
    """Return the file of what the descriptions of an untrained dictionary of ``layer`` score."""
    return Path("data/floor") / f"layer_{layer}.json"


def pruned_of(layer: int) -> Path:
    """Return the table of pruned plain dictionaries of ``layer``."""
    return Path("data/pruned") / f"layer_{layer}.csv"


def probing_of(layer: int) -> Path:
    """Return the table of how well a few latents of ``layer`` tell topics."""
    return Path("data/probing") / f"layer_{layer}.csv"


def classes_of(layer: int) -> Path:
    """Return the folder of what the dictionaries of ``layer`` make of classes of words."""
    return Path("data/classes") / f"layer_{layer}"


def families_of(layer: int) -> Path:
    """Return the file of the families that are planted into the activations of ``layer``."""
    return Path("data/families") / f"layer_{layer}.safetensors"


def verdicts_of(layer: int) -> Path:
    """Return the folder of what planted families say of the dictionaries of ``layer``."""
    return Path("data/verdicts") / f"layer_{layer}"


def interventions_of(seed: int) -> Path:
    """Return the folder of what holding latents of the transcoders of ``seed`` does."""
    return Path("data/interventions") / str(seed)


def circuits_of(seed: int) -> Path:
    """Return the folder of the circuits that the transcoders of ``seed`` take part in."""
    return Path("data/circuits") / str(seed)


class Run(NamedTuple):
    """One transcoder of the matrix: what it is called, and the folders that its stages write."""

    variant: str
    layer: int
    seed: int

    @property
    def name(self) -> str:
        """The key of the run's stages, as in ``train@topk-9-0``, and the name of its folders."""
        return f"{self.variant}-{self.layer}-{self.seed}"

    @property
    def model(self) -> Path:
        """The trained transcoder, its history and its training metrics."""
        return Path("models") / self.name

    @property
    def evaluation(self) -> Path:
        """What stage `evaluate` writes."""
        return Path("data/evaluate") / self.name

    @property
    def absorption(self) -> Path:
        """What stage `absorption` writes."""
        return Path("data/absorption") / self.name

    @property
    def planted(self) -> Path:
        """What stage `planted` writes."""
        return Path("data/planted") / self.name

    @property
    def features(self) -> Path:
        """What stage `features` writes."""
        return Path("data/features") / self.name


def all_runs(variants: Sequence[str], layers: Sequence[int], seeds: Sequence[int]) -> list[Run]:
    """Return every variant at every layer with every seed, in the order of dvc.yaml's matrix."""
    return [Run(variant, layer, seed) for variant in variants for layer in layers for seed in seeds]
