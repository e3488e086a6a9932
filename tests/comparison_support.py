"""Results of runs, as stages write them, for tests of what compares them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from transcoders.comparison.results import RunResult

EVALUATION = {
    "tokens": 1000.0,
    "mse": 3.0,
    "nmse": 0.3,
    "fvu": 0.31,
    "r2": 0.69,
    "cosine": 0.83,
    "l0": 32.0,
    "dead_fraction": 0.1,
    "ce_clean": 2.9,
    "delta_ce": 0.05,
    "loss_recovered": 0.7601,
    "kl": 0.073752,
    "top1_agreement": 0.85,
    "novel_fraction": 0.7,
    "mean_max_cosine": 0.57,
    "seed": 0,
    "split_hash": "s",
    "model_hash": "m",
}
LETTERS = ["category", "kept", "mean_absorption", "splitting", "main_f1", "words"]


def documents(count: int = 20) -> pd.DataFrame:
    """Sums of documents that are all alike."""
    columns = {"tokens": 10.0, "error": 0.3, "variation": 1.0, "loss_tokens": 10.0}
    losses = {"ce_clean": 30.0, "ce_zero": 40.0, "ce_replaced": 32.0}
    return pd.DataFrame({name: np.full(count, value) for name, value in (columns | losses).items()})


def letters(absorption: float, count: int = 7) -> pd.DataFrame:
    """Readable letters with the same figures each, and q, which is not readable."""
    rows = [("abcdefghijkl"[i], True, absorption, 0.0, 0.8, 50.0) for i in range(count)]
    return pd.DataFrame([*rows, ("q", False, np.nan, np.nan, np.nan, np.nan)], columns=LETTERS)


def result(variant: str, layer: int, seed: int, **changes: Any) -> RunResult:
    """What the stages wrote of a run; ``absorption`` and ``dead`` are figures, ``documents`` and ``letters`` tables."""
    absorption, dead = changes.pop("absorption", 0.05), changes.pop("dead", 0.1)
    return RunResult(
        name=f"{variant}-{layer}-{seed}",
        variant=variant,
        layer=layer,
        seed=seed,
        config={"d_hidden": 5120, "k": 32},
        training={"tokens": 600},
        history=pd.DataFrame({"step": [1, 2], "nmse": [1.0, 0.3]}),
        evaluation=EVALUATION | {"dead_fraction": dead, "mean_max_cosine": 0.5 + dead / 10},
        documents=changes.pop("documents", documents()),
        absorption={
            "task": "first letters",
            "mean_absorption": absorption,
            "full_absorption": 0.0,
            "splitting": 0.125,
            "categories": 7.0,
        },
        categories=changes.pop("categories", letters(absorption)),
        features={"living": 100.0, "detection_score": 0.7123},
    )._replace(**changes)


def write(root: Path, run: RunResult) -> None:
    """Write what the stages train, evaluate, absorption and features write of ``run``."""
    files = {
        f"models/{run.name}/config.json": run.config,
        f"models/{run.name}/metrics.json": run.training,
        f"models/{run.name}/history.csv": run.history,
        f"data/evaluate/{run.name}/metrics.json": run.evaluation,
        f"data/evaluate/{run.name}/documents.csv": run.documents,
        f"data/absorption/{run.name}/metrics.json": run.absorption,
        f"data/absorption/{run.name}/categories.csv": run.categories,
        f"data/features/{run.name}/metrics.json": run.features,
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        text = content.to_csv(index=False) if isinstance(content, pd.DataFrame) else json.dumps(content)
        (root / name).write_text(text)
