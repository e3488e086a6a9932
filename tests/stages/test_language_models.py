"""Tiny language models through the stages: one whose tokenizer has no BOS, and edits of what a user brings."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from families_support import POSITIONS, VOCABULARY, tiny_model
from ruamel.yaml import YAML
from tests_support import save_numbers_tokenizer

from stages import clean, collect, evaluate, model, split, train
from stages.common.paths import Run
from transcoders import Transcoder
from transcoders.__main__ import main as command_line
from transcoders.activations.store import Store
from transcoders.circuits import trace
from transcoders.circuits.settings import CircuitSettings
from transcoders.core.errors import UserError
from transcoders.core.tables import read_parquet

ROOT = Path(__file__).parents[2]
RUN = Run("topk", 1, 0)
STORE = Path("data/activations/layer_1.zarr")
MODEL, TEXT = Path("inputs/model/tiny"), Path("inputs/text/notes.jsonl")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Parameters, text and a model of Qwen 3's kind, whose tokenizer has no BOS and ends texts with 0."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny_model(MODEL, "qwen3")
    save_numbers_tokenizer(MODEL, bos_token=None)
    TEXT.parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = [" ".join(map(str, rng.integers(2, VOCABULARY, 90))) for _ in range(30)]
    TEXT.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    params = YAML().load(ROOT / "params.yaml")
    params["model"]["name"] = str(MODEL)
    params["collect"] |= {
        "layers": [1],
        "tokens": 1500,
        "context_length": 32,
        "text": {"source": "file", "path": str(TEXT)},
    }
    params["split"] |= {"validation": 0.2, "test": 0.2}
    params["train"] |= {"d_hidden": 64, "k": 4, "epochs": 1, "batch_size": 200, "precision": "float32"}
    params["evaluate"] |= {"loss_tokens": 64, "bootstrap": 10}
    YAML().dump(params, tmp_path / "params.yaml")
    return tmp_path


def change(**values):
    params = YAML().load(Path("params.yaml"))
    params["collect"] |= values
    YAML().dump(params, Path("params.yaml"))


def prompt_of(transcoder):
    return trace("2 3 4 5", "6", "7", {1: transcoder}, "data/model", CircuitSettings(max_latents=20)).words


def test_a_model_without_bos_goes_through_the_pipeline(checkout, monkeypatch):
    model.work()
    with pytest.raises(UserError, match=r"^collect\.context_start: null takes the tokenizer's BOS.*name .*'0'"):
        collect.main()
    assert not STORE.exists()
    change(context_start="0")
    collect.main()
    split.work()
    train.work(RUN)
    clean.work(RUN.layer)
    evaluate.work(RUN)

    contexts = read_parquet(Path("data/contexts.parquet"), "collect", ["tokens"])["tokens"]
    assert {row[0] for row in contexts} == {0}
    store = Store(STORE)
    assert (store.attributes["context_start"], store.attributes["prepend_bos"]) == ("0", False)
    assert store.labels("position").min() == 1
    assert np.isfinite(json.loads(Path(f"data/evaluate/{RUN.name}/metrics.json").read_text())["ce_clean"])
    transcoder = Transcoder.load(RUN.model)
    assert prompt_of(transcoder) == ["0", "2", "3", "4", "5"]

    monkeypatch.setattr(sys, "argv", ["transcoders", "export", RUN.name, "--to", "saelens", "--out", "exported"])
    command_line()
    metadata = json.loads(Path("exported/cfg.json").read_text())["metadata"]
    assert (metadata["prepend_bos"], metadata["context_start"]) == (False, "0")
    assert metadata["hf_hook_name"] == "model.layers.1.post_attention_layernorm.output"
    assert metadata["hf_hook_name_out"] == "model.layers.1.mlp.output"
    assert "| contexts begin with | `0` |" in Path("exported/README.md").read_text()


def test_contexts_can_begin_with_their_text(checkout):
    change(context_start="none")
    model.work()
    collect.main()
    split.work()
    train.work(RUN)
    contexts = read_parquet(Path("data/contexts.parquet"), "collect", ["tokens"])["tokens"]
    assert min(row[0] for row in contexts) >= 2
    assert max(map(len, contexts)) == 32
    store = Store(STORE)
    assert store.labels("position").min() == 1
    assert store.tokens == sum(len(row) - 1 for row in contexts) == 1500
    assert store.attributes["context_start"] is None
    assert prompt_of(Transcoder.load(RUN.model)) == ["2", "3", "4", "5"]


def test_contexts_longer_than_the_models_positions_are_refused(checkout):
    change(context_start="0", context_length=POSITIONS + 1)
    model.work()
    with pytest.raises(UserError, match=rf"^collect\.context_length: {POSITIONS + 1} tokens are more than the model's"):
        collect.main()


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_edits_of_text_and_model_are_noticed_and_going_back_brings_the_first_store(checkout):
    change(context_start="0")
    for folder in ("stages", "transcoders"):
        shutil.copytree(ROOT / folder, folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def dvc(*command):
        done = subprocess.run(["dvc", *command], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def collected():
        model.work()
        collect.main()
        return files(Path("data/activations")), json.loads(Path("data/collect.json").read_text())["layer_1"]["y_rms"]

    text, config = TEXT.read_text(), (MODEL / "config.json").read_text()
    first, y_rms = collected()
    dvc("init", "--no-scm", "-q")
    dvc("commit", "-q", "--force", "model", "collect")
    assert "up to date" in dvc("status", "model", "collect")

    TEXT.write_text(text.replace(" 7 ", " 8 "))
    assert "inputs/text" in dvc("status", "collect")
    other_text, _ = collected()
    assert other_text.keys() == first.keys()
    assert other_text != first

    (MODEL / "config.json").write_text(config.replace('"hidden_act": "silu"', '"hidden_act": "relu"'))
    assert "inputs/model" in dvc("status", "model")
    TEXT.write_text(text)
    _, other_y_rms = collected()
    assert abs(other_y_rms - y_rms) > 0.01 * y_rms

    (MODEL / "config.json").write_text(config)
    assert "inputs/model" not in dvc("status", "model")
    assert collected() == (first, y_rms)
