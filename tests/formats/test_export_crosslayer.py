import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from crosslayer_formats_support import LAYERS, D, F
from ruamel.yaml import YAML
from tests_support import make_store

from transcoders import load
from transcoders.activations.layers import LayersBatch
from transcoders.core.errors import UserError
from transcoders.dictionary.crosslayer import files
from transcoders.dictionary.crosslayer.config import CrossLayerConfig
from transcoders.dictionary.crosslayer.transcoder import CrossLayerTranscoder
from transcoders.formats.convert import Samples
from transcoders.formats.crosslayer.convert import as_thresholded, folded
from transcoders.formats.export import Trained, export

X = torch.randn(50, LAYERS, D, generator=torch.Generator().manual_seed(1))
HASH = "h" * 64


def trained(**changes):
    """A transcoder in units of its own in every layer."""
    config = {
        "layers": (0, 1, 2),
        "d_model": D,
        "d_hidden": F,
        "k": 3,
        "provenance": {"model": "m", "model_hash": HASH},
    }
    config |= {"input_scales": (2.0, 0.5, 3.0), "output_scales": (10.0, 4.0, 0.1)}
    model = CrossLayerTranscoder(CrossLayerConfig(**(config | changes)))
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        if not (name.startswith("sources") and name.endswith("b_dec")):
            value.data = torch.randn(value.shape, generator=generator)
        if name.endswith("threshold"):
            value.data.abs_()
    return model.requires_grad_(False)


def samples():
    x = torch.randn(2000, LAYERS * D, generator=torch.Generator().manual_seed(2))

    def batches(rows):
        return lambda: [LayersBatch(part, part.flip(1), np.zeros(len(part), np.int32)) for part in rows.split(300)]

    return Samples(batches(x[:1500]), batches(x[1500:]))


def close(found, wanted):
    """To 1e-5 of the outputs' size."""
    return float((found - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


@pytest.mark.parametrize("changes", [{}, {"skip": True, "reach": 1}, {"budget": "token"}, {"encoder": "jumprelu"}])
def test_folding_changes_neither_outputs_nor_latents(changes):
    model = trained(**changes)
    plain = folded(model)
    assert set(plain.config.input_scales + plain.config.output_scales) == {1.0}
    assert close(plain(X), model(X))
    for ours, theirs in zip(plain.encode(X), model.encode(X), strict=True):
        assert torch.allclose(ours.dense(), theirs.dense(), atol=1e-4)


@pytest.mark.parametrize("reach", [None, 1])
@pytest.mark.parametrize("encoder", ["relu", "jumprelu", "batchtopk"])
def test_what_has_thresholds_is_exported_exactly(tmp_path, encoder, reach):
    model = trained(encoder=encoder, reach=reach)
    export([Trained("run", model, None, None)], "circuit-tracer", tmp_path / "out")
    back = load(tmp_path / "out")
    assert close(back(X), model(X))
    assert "Exact" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("changes", [{}, {"budget": "token"}, {"prefixes": (10, F), "prefix_k": (1, 3)}])
def test_topk_becomes_jumprelu_with_calibrated_thresholds_and_says_what_is_lost(tmp_path, changes):
    model = trained(**changes)
    export([Trained("run", model, samples(), None)], "circuit-tracer", tmp_path / "out")
    stated = YAML(typ="safe").load(tmp_path / "out/config.yaml")["fidelity"]["run"]
    back = load(tmp_path / "out")
    x = torch.cat([batch.x for batch in samples().test()]).view(-1, LAYERS, D)
    y = model(x)
    apart = (back(x) - y).square().sum((0, 2)) / (y - y.mean(0)).square().sum((0, 2))
    assert stated["exact"] is False
    assert stated["tokens"] == len(x)
    assert stated["fvu_of_original_output"] == pytest.approx(float(apart.mean()), rel=1e-3)
    assert stated["fvu_of_original_output"] < 0.6
    active = sum(int((latents.values > 0).sum()) for latents in back.encode(x))
    assert stated["l0"] == pytest.approx(active / len(x), abs=0.01)
    card = (tmp_path / "out/README.md").read_text()
    assert f"differs from the trained transcoder's by {apart.mean():.3g}" in card
    assert "means over layers; L0 is of all layers together" in card


def test_calibrating_a_layer_alone_and_among_others_is_the_same():
    from transcoders.formats.convert import calibrate

    model, given = folded(trained()), samples()
    alone = calibrate(model.sources[1], Samples(lambda: _of_layer_1(given.calibration()), given.test))
    assert torch.equal(as_thresholded(model, given).model.sources[1].threshold, alone.clamp(min=0))


def _of_layer_1(batches):
    for batch in batches:
        yield LayersBatch(batch.x[:, D : 2 * D].contiguous(), batch.y, batch.document)


@pytest.mark.parametrize(
    ("runs", "target", "message"),
    [
        ([Trained("clt", trained(), None, None)], "circuit-tracer", r"thresholds are calibrated on activations"),
        ([Trained("clt", trained(skip=True), None, None)], "circuit-tracer", r"have no place for a skip connection"),
        ([Trained("clt", trained(layers=(0, 2, 3)), None, None)], "circuit-tracer", r"of all layers .*missing: \[1\]"),
        ([Trained("clt", trained(), None, None, 5)], "circuit-tracer", r"of all layers .*missing: \[3, 4\]"),
        ([Trained("clt", trained(), None, None)] * 2, "circuit-tracer", r"takes one run, not 2"),
        ([Trained("clt", trained(), None, None)], "saelens", r"saelens: has no place for the cross-layer .* clt"),
        ([Trained("clt", trained(), None, None)], "hub", r"hub: has no place for the cross-layer transcoder clt"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path, runs, target, message):
    with pytest.raises(UserError, match=message):
        export(runs, target, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command_reads_the_run_and_the_activations_of_all_its_layers(tmp_path):
    torch.manual_seed(0)
    for layer in range(LAYERS):
        x = torch.randn(300, D)
        make_store(tmp_path / f"data/activations/layer_{layer}.zarr", x, x.flip(1), documents=np.arange(300) // 100)
    pd.DataFrame({"split": ["train", "validation", "test"]}).to_parquet(tmp_path / "data/split.parquet")
    (tmp_path / "data/model").mkdir()
    (tmp_path / "data/model/config.json").write_text(json.dumps({"num_hidden_layers": LAYERS}))
    files.save(trained(), tmp_path / "models/clt-0")
    done = subprocess.run(
        [sys.executable, "-m", "transcoders", "export", "clt-0", "--to", "circuit-tracer"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "export/circuit-tracer/clt-0/README.md").read_text()
    for text in ("Sparse cross-layer transcoder of m", "| layers | 0 to 2 |", "| latents | 20 a layer |", "load_clt("):
        assert text in card
    assert load(tmp_path / "export/circuit-tracer/clt-0").config.encoder == "jumprelu"
