"""The smallest activation store, from the stage that writes it to those that read it, on the real model."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML
from tests_support import make_store

from stages import clean, collect, evaluate, split, train
from stages.common.inputs import open_inputs
from stages.common.paths import Run
from transcoders.activations.recompute import open_store
from transcoders.collecting.settings import TextSettings
from transcoders.collecting.text import documents
from transcoders.core.errors import UserError
from transcoders.core.provenance import PROVENANCE

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
RUN = Run("topk", 2, 0)
STORE = Path("data/activations/layer_2.zarr")


@pytest.fixture
def checkout(tmp_path, monkeypatch, gemma):
    """A tiny run's parameters, the real model, some text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/model").symlink_to(gemma)
    texts = [document.text[:1000] for document in islice(documents(TextSettings()), 40)]
    (tmp_path / "inputs/text").mkdir(parents=True)
    (tmp_path / "inputs/text/text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    params = YAML().load(ROOT / "params.yaml")
    params["collect"] |= {
        "layers": [2],
        "tokens": 1500,
        "context_length": 64,
        "dtype": "int8",
        "codec": "zstd",
        "outputs": "recomputed",
        "text": {"source": "file", "path": "inputs/text/text.jsonl", "column": "text"},
    }
    params["split"] |= {"validation": 0.2, "test": 0.2}
    params["runs"] |= {"layers": [2]}
    params["train"] |= {"d_hidden": 64, "k": 4, "epochs": 1, "batch_size": 200, "precision": "float32"}
    params["evaluate"] |= {"loss_tokens": 64, "bootstrap": 10}
    YAML().dump(params, tmp_path / "params.yaml")


def test_int8_compressed_x_alone_serves_the_stages(checkout):
    collect.main()
    assert not (STORE / "mlp_out").exists()
    split.work()
    store = open_inputs(2, CPU).store
    assert store.attributes["stored_bytes"]["mlp_in"] < 0.8 * store.tokens * store.d_model
    y = store.rows("mlp_out", 0, store.tokens)
    exact = torch.tensor(store.attributes["mlp_out_mean"])  # of the y that the model gave
    assert float((y.mean(0) - exact).norm() / exact.norm()) < 0.02
    train.work(RUN)
    clean.work(RUN.layer)
    evaluate.work(RUN)
    assert json.loads(Path(f"data/evaluate/{RUN.name}/metrics.json").read_text())["fvu"] < 1

    with pytest.raises(UserError, match=r"nowhere: holds no model, but .*layer_2\.zarr needs one.*dvc repro model"):
        open_store(STORE, Path("nowhere"), CPU)
    Path("other").mkdir()
    (Path("other") / PROVENANCE).write_text(json.dumps({"sha256": {"model.safetensors": "0"}}))
    with pytest.raises(UserError, match=r"other: is not the model that .*layer_2\.zarr was collected from"):
        open_store(STORE, Path("other"), CPU)


@pytest.mark.parametrize("kind", [{"dtype": "bfloat16", "codec": "blosc-lz4"}, {"dtype": "int8"}])
def test_training_reads_every_kind(checkout, kind):
    x = torch.randn(1000, 16) @ torch.randn(16, 640)
    make_store(STORE, x, x, documents=np.arange(1000) // 250, **kind)
    parts = {"title": list("abcd"), "split": ["train", "train", "validation", "test"]}
    pd.DataFrame(parts).to_parquet("data/split.parquet")
    train.work(RUN)
    assert json.loads((RUN.model / "metrics.json").read_text())["best_validation_nmse"] < 1
