import json
import os
import subprocess
import sys

import formats_support as foreign
import numpy as np
import pandas as pd
import pytest
import torch
from formats_support import D, F, expected, raw
from ruamel.yaml import YAML
from tests_support import make_store

from transcoders import Transcoder, load
from transcoders.activations.reader import LabelledBatch
from transcoders.core.errors import UserError
from transcoders.dictionary.config import TranscoderConfig
from transcoders.formats.convert import Samples, _best_thresholds, as_thresholded, folded
from transcoders.formats.export import Trained, export

HASH = "h" * 64


def trained(layer=0, **changes):
    """A transcoder whose latents answer to single inputs, in scaled units."""
    config = {"d_in": D, "d_out": D, "d_hidden": F, "k": 4, "input_scale": 2.0, "output_scale": 10.0}
    provenance = {
        "layer": layer,
        "model": "gemma-3-270m",
        "model_hash": HASH,
        "hook_in": "blocks.0.mlp.hook_in",
        "hook_out": "blocks.0.hook_mlp_out",
        "train": {"epochs": 3},
    }
    model = Transcoder(TranscoderConfig(**(config | {"provenance": provenance} | changes)))
    generator = torch.Generator().manual_seed(layer)
    for name, parameter in model.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
        if name == "threshold":
            parameter.data.abs_()
    return model.requires_grad_(False)


def samples(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2000, D, generator=generator) * 2

    def batches(rows):
        zeros = np.zeros(len(rows), np.int32)
        return lambda: [LabelledBatch(rows, rows.flip(1), zeros, zeros)]

    return Samples(batches(x[:1500]), batches(x[1500:]))


X = torch.randn(50, D, generator=torch.Generator().manual_seed(1))
EXACT = {
    "saelens": ["batchtopk", "jumprelu", "relu"],
    "circuit-tracer": ["batchtopk", "jumprelu", "relu"],
    "sparsify": ["topk", "groupmax"],
}


def readable(out, target):
    return out / "layer_0.safetensors" if target == "circuit-tracer" else out


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("target", "encoder"), [(t, encoder) for t, encoders in EXACT.items() for encoder in encoders])
def test_what_has_a_counterpart_is_exported_exactly(tmp_path, target, encoder, skip):
    model = trained(encoder=encoder, skip=skip)
    export([Trained("run", model, None, None)], target, tmp_path / "out")
    back = load(readable(tmp_path / "out", target))
    assert torch.allclose(back(X), model(X), rtol=1e-5, atol=1e-3)
    assert (back.config.input_scale, back.config.output_scale) == (1, 1)
    assert "Exact" in (tmp_path / "out/README.md").read_text()


def test_a_hub_folder_holds_ours_and_saelens(tmp_path):
    model = trained(prefixes=(10, F), prefix_k=(1, 4))
    export([Trained("run", model, samples(), None)], "hub", tmp_path / "out")
    ours = load(tmp_path / "out")
    assert torch.allclose(ours(X), model(X), rtol=1e-5, atol=1e-3)
    assert ours.config.prefixes == (10, F)
    assert load(tmp_path / "out/saelens").config.encoder == "jumprelu"


def test_folding_changes_neither_outputs_nor_latents():
    for model in (trained(skip=True), trained(encoder="jumprelu"), trained(prefixes=(10, F), prefix_k=(1, 4))):
        plain = folded(model)
        assert torch.allclose(plain(X), model(X), rtol=1e-5, atol=1e-3)
        assert torch.allclose(plain.encode(X).dense(), model.encode(X).dense(), atol=1e-5)


@pytest.mark.parametrize("nested", [{}, {"prefixes": (10, F), "prefix_k": (1, 4)}])
def test_topk_becomes_jumprelu_with_calibrated_thresholds_and_says_what_is_lost(tmp_path, nested):
    model = trained(**nested)
    export([Trained("run", model, samples(), None)], "saelens", tmp_path / "out")
    metadata = json.loads((tmp_path / "out/cfg.json").read_text())["metadata"]["fidelity"]
    back = load(tmp_path / "out")
    x = next(iter(samples().test())).x
    apart = (back(x) - model(x)).square().sum() / (model(x) - model(x).mean(0)).square().sum()
    assert metadata["fvu_of_original_output"] == pytest.approx(float(apart), rel=1e-3)
    assert metadata["l0"] == pytest.approx(float(back.forward_with_info(x).l0.mean()), abs=0.01)
    assert metadata["exact"] is False
    assert metadata["fvu_of_original_output"] < 0.6
    assert f"differs from the trained transcoder's by {apart:.3g}" in (tmp_path / "out/README.md").read_text()


def test_nested_topk_has_no_exact_counterpart_in_sparsify(tmp_path):
    model = trained(prefixes=(10, F), prefix_k=(1, 4))
    export([Trained("run", model, samples(), None)], "sparsify", tmp_path / "out")
    assert json.loads((tmp_path / "out/cfg.json").read_text())["metadata"]["fidelity"]["exact"] is False


def test_a_threshold_is_the_cut_with_the_least_wrong_squares():
    indices = torch.tensor([1, 1, 1, 1, 2, 2])
    values = torch.tensor([3.0, 1.0, 2.0, 4.0, 5.0, 6.0])
    by_topk = torch.tensor([True, False, False, True, True, True])
    thresholds = _best_thresholds(indices, values, by_topk, 4)
    assert 2 <= thresholds[1] < 3
    assert 4.99 < thresholds[2] < 5
    assert thresholds[0] == thresholds[3] == thresholds.max(), "never chosen: the highest"


def test_calibrating_beats_any_single_threshold():
    model, given = trained(), samples()
    calibrated = as_thresholded(model, given).fidelity["fvu_of_original_output"]
    plain, x = folded(model), next(iter(given.test())).x
    y = plain(x)
    tensors = {name: value.data for name, value in plain.named_parameters()}
    for threshold in torch.linspace(0, 8, 40):
        y_hat = expected(tensors | {"threshold": threshold.expand(F)}, x)
        assert calibrated < (y_hat - y).square().sum() / (y - y.mean(0)).square().sum()


@pytest.mark.parametrize(
    ("runs", "target", "message"),
    [
        ([trained()], "saelens", r"thresholds are calibrated on activations .*run `dvc repro split`, or .*--data"),
        ([trained(encoder="relu"), trained(encoder="relu")], "saelens", r"takes one run, not 2"),
        ([trained(encoder="relu", d_out=5)], "sparsify", r"fidelity is measured"),
        ([trained(d_out=5)], "sparsify", r"sparsify knows one width, but d_in = 12, d_out = 5; use --to saelens"),
        ([trained(2, encoder="relu")], "circuit-tracer", r"every layer from 0; missing: \[0, 1\]"),
        ([trained(encoder="relu"), trained(encoder="relu")], "circuit-tracer", r"named twice"),
        ([trained(encoder="relu"), trained(1, encoder="relu", d_hidden=20)], "circuit-tracer", r"one d_hidden .*40"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path, runs, target, message):
    with pytest.raises(UserError, match=message):
        export([Trained(f"run-{i}", model, None, None) for i, model in enumerate(runs)], target, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command_reads_runs_activations_and_metrics(tmp_path):
    for layer in (0, 1):
        x = torch.randn(300, D)
        make_store(tmp_path / f"data/activations/layer_{layer}.zarr", x, x.flip(1), documents=np.arange(300) // 100)
        trained(layer).save(tmp_path / f"models/topk-{layer}-0")
        (tmp_path / f"data/evaluate/topk-{layer}-0").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"data/evaluate/topk-{layer}-0/metrics.json").write_text(json.dumps({"fvu": 0.25, "tokens": 9.0}))
    pd.DataFrame({"split": ["train", "validation", "test"]}).to_parquet(tmp_path / "data/split.parquet")

    def run(*arguments, status=0):
        env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HF_TOKEN": ""}
        done = subprocess.run(
            [sys.executable, "-m", "transcoders", "export", *arguments],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done.stderr

    assert "wrote mine" in run("topk-0-0", "topk-1-0", "--to", "circuit-tracer", "--out", "mine")
    config = YAML(typ="safe").load(tmp_path / "mine/config.yaml")
    assert config["transcoders"] == ["layer_0.safetensors", "layer_1.safetensors"]
    assert set(config["fidelity"]) == {"topk-0-0", "topk-1-0"}
    card = (tmp_path / "mine/README.md").read_text()
    assert YAML(typ="safe").load(card.split("---")[1])["license"] == "gemma"
    for text in ("| `fvu` | 0.25 |", "| epochs | 3 |", "ai.google.dev/gemma/terms", "## topk-1-0", "JumpReLU"):
        assert text in card
    run("models/topk-0-0", "--to", "sparsify")
    assert (tmp_path / "export/sparsify/topk-0-0/sae.safetensors").is_file()
    assert "models/topk-9-9: there is no such file or folder" in run("topk-9-9", "--to", "sparsify", status=1)
    assert "holds something that is no export" in run("topk-0-0", "--to", "sparsify", "--out", "models", status=1)
    assert run("topk-0-0", "--to", "hub", status=1).splitlines()[-1].startswith("error: --to hub: ")


def test_what_was_read_can_be_exported(tmp_path):
    t = raw(skip=True)
    model = load(foreign.gemma_scope_2(tmp_path, t))
    export([Trained("official", model, None, None)], "saelens", tmp_path / "out")
    assert torch.allclose(load(tmp_path / "out")(X), expected(t, X), atol=1e-4)
