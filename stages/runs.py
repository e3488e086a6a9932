"""What the stages of one run (variant, layer, seed) share: its name, its inputs."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from transcoders.activations.recompute import open_store
from transcoders.activations.split import PARTS, documents_of
from transcoders.activations.store import Store
from transcoders.core.files import read_json, sha256_of
from transcoders.core.tables import read_parquet

SPLIT = Path("data/split.parquet")
MODEL = Path("data/model")


class Run(NamedTuple):
    """One transcoder of the matrix."""

    variant: str
    layer: int
    seed: int

    @property
    def name(self) -> str:
        """The name of its files and of its stages."""
        return f"{self.variant}-{self.layer}-{self.seed}"

    @property
    def folder(self) -> Path:
        """Where the trained transcoder lies."""
        return Path("models") / self.name


class Inputs(NamedTuple):
    """A layer's activations and who may see which documents."""

    store: Store
    documents: dict[str, NDArray[np.bool_]]
    """Mask over document ids for each of train, validation, test."""
    split_hash: str


def parse_run(description: str | None) -> Run:
    """VARIANT LAYER SEED from the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("variant", help="a key of variants in params.yaml")
    parser.add_argument("layer", type=int)
    parser.add_argument("seed", type=int)
    arguments = parser.parse_args()
    return Run(arguments.variant, arguments.layer, arguments.seed)


def open_inputs(layer: int, device: torch.device) -> Inputs:
    """The activation store of ``layer``, which recomputes what it lacks on ``device``, and the split."""
    split = read_parquet(SPLIT, "split", ["split"])
    return Inputs(
        open_store(Path(f"data/activations/layer_{layer}.zarr"), MODEL, device),
        {part: documents_of(split, part) for part in PARTS},
        sha256_of(SPLIT)[:16],
    )


def read_metrics(kind: str, name: str, stage: str | None = None, root: Path = Path()) -> dict[str, Any]:
    """``metrics/<kind>/<name>.json``, which ``stage`` (``kind``, if not given) wrote."""
    return read_json(root / "metrics" / kind / f"{name}.json", f"run `dvc repro -f {stage or kind}@{name}`")
