import subprocess
import sys

import crosslayer_formats_support as foreign
import pytest
import torch
from crosslayer_formats_support import LAYERS, D, expected_layers, raw_layers
from safetensors.torch import load_file, save_file

from transcoders import load
from transcoders.core.errors import UserError
from transcoders.dictionary.crosslayer import files
from transcoders.dictionary.crosslayer.transcoder import CrossLayerTranscoder
from transcoders.dictionary.transcoder import Transcoder
from transcoders.formats.read import load_one_layer

X = torch.randn(30, LAYERS, D, generator=torch.Generator().manual_seed(1))
FACTORS_IN, FACTORS_OUT = (0.5, 2.0, 3.0), (4.0, 0.25, 10.0)


def close(found, wanted):
    """To 1e-5 of the outputs' size."""
    return float((found - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


@pytest.mark.parametrize("skip", [False, True])
def test_gemma_scope_2_is_read_whatever_it_holds_for_earlier_layers(tmp_path, skip):
    t = raw_layers(skip=skip)
    folder = foreign.gemma_scope_2_clt(tmp_path, t)
    model = load(folder)
    assert isinstance(model, CrossLayerTranscoder)
    assert close(model(X), expected_layers(t, X))
    assert model.config.layers == (0, 1, 2)
    assert model.config.provenance["model"] == "google/gemma-3-270m"
    assert torch.equal(load(folder / "params_layer_1.safetensors")(X), model(X)), "a file stands for its folder"


@pytest.mark.parametrize("threshold", [False, True])
def test_circuit_tracers_is_read_with_thresholds_and_without(tmp_path, threshold):
    t = raw_layers(threshold)
    model = load(foreign.circuit_tracer_clt(tmp_path, t))
    assert close(model(X), expected_layers(t, X))
    assert model.config.encoder == ("jumprelu" if threshold else "relu")


def test_clt_forge_is_read_and_its_units_become_raw_ones(tmp_path):
    t = raw_layers()
    model = load(foreign.clt_forge(tmp_path, t, FACTORS_IN, FACTORS_OUT))
    assert close(model(X), expected_layers(t, X))
    assert set(model.config.input_scales + model.config.output_scales) == {1.0}


def test_what_was_read_is_saved_and_loaded_as_ours(tmp_path):
    model = load(foreign.gemma_scope_2_clt(tmp_path, raw_layers(skip=True)))
    files.save(model, tmp_path / "ours")
    assert torch.equal(load(tmp_path / "ours")(X), model(X))
    assert torch.equal(load(tmp_path / "ours/layer_0.safetensors")(X), model(X))


def test_16_bit_weights_are_computed_with_in_float32(tmp_path):
    t = [{name: value.bfloat16() for name, value in tensors.items()} for tensors in raw_layers()]
    model = load(foreign.gemma_scope_2_clt(tmp_path, t))
    assert close(model(X), expected_layers([{n: v.float() for n, v in tensors.items()} for tensors in t], X))


def test_where_one_layer_is_needed_a_cross_layer_transcoder_is_refused(tmp_path):
    model = load(foreign.gemma_scope_2_clt(tmp_path, raw_layers()))
    files.save(model, tmp_path / "ours")
    with pytest.raises(UserError, match=r"ours: is a cross-layer transcoder of 3 layers, where one of a single layer"):
        load_one_layer(tmp_path / "ours")
    with pytest.raises(UserError, match=r"ours: holds a cross-layer transcoder \(layer_0.*one of a single layer"):
        Transcoder.load(tmp_path / "ours")


MEASURE = """
import sys, torch
from pathlib import Path
from transcoders import load
def status(key):
    return 1024 * int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1])
load(sys.argv[2])  # what the first call of anything costs
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
model = load(sys.argv[1])
print(status("VmHWM") - before, sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's memory counters")
def test_reading_takes_less_memory_than_a_layers_file_beside_the_transcoder(tmp_path):
    shapes = {"layers": 6, "d": 160, "d_hidden": 16384}
    large = foreign.gemma_scope_2_clt(tmp_path / "large", raw_layers(skip=True, **shapes))
    small = foreign.gemma_scope_2_clt(tmp_path / "small", raw_layers(skip=True))
    done = subprocess.run([sys.executable, "-c", MEASURE, large, small], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, model = map(int, done.stdout.split())
    layer = (large / "params_layer_5.safetensors").stat().st_size
    assert layer > 70e6
    assert peak < model + 1.1 * layer


def changed(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)


def refused(path, message):
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_missing_layer_is_named(tmp_path, layer):
    scope = foreign.gemma_scope_2_clt(tmp_path, raw_layers())
    (scope / f"params_layer_{layer}.safetensors").unlink()
    refused(scope, rf"params_layer_{layer}\.safetensors: is missing; layers 0 to 2 have one each")
    for kind in ("enc", "dec"):
        tracer = foreign.circuit_tracer_clt(tmp_path / kind, raw_layers())
        (tracer / f"W_{kind}_{layer}.safetensors").unlink()
        refused(tracer, rf"W_{kind}_{layer}\.safetensors: is missing; layers 0 to 2 have one each")


def test_a_layer_too_many_is_named(tmp_path):
    scope = foreign.gemma_scope_2_clt(tmp_path, raw_layers())
    (scope / "params_layer_3.safetensors").write_bytes((scope / "params_layer_2.safetensors").read_bytes())
    refused(scope, r"params_layer_3\.safetensors: is of layer 3, but .* writes to 3 layers")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("threshold"), r"params_layer_2\.safetensors: lacks threshold; it holds b_dec"),
        (lambda t: t.update(extra=torch.ones(1)), r"params_layer_2\.safetensors: holds extra, which"),
        (lambda t: t.update(w_dec=torch.ones(20, 2, 12)), r"w_dec is \[20, 2, 12\], expected \[20, 3, 12\]; are all"),
        (lambda t: t.update(w_enc=t["w_enc"].T), r"w_enc is \[20, 12\], expected \[12, 20\]"),
    ],
)
def test_a_wrong_tensor_is_named_with_its_file_and_shape(tmp_path, change, message):
    folder = foreign.gemma_scope_2_clt(tmp_path, raw_layers())
    changed(folder / "params_layer_2.safetensors", change)
    refused(folder, message)


def test_decoders_without_layers_are_refused(tmp_path):
    folder = foreign.gemma_scope_2_clt(tmp_path, raw_layers())
    changed(folder / "params_layer_0.safetensors", lambda t: t.update(w_dec=torch.ones(20, 12)))
    refused(folder, r"params_layer_0\.safetensors: w_dec is \[20, 12\], expected \[latents, layers, d_model\]")


def test_circuit_tracers_wrong_shapes_and_settings_are_refused(tmp_path):
    folder = foreign.circuit_tracer_clt(tmp_path, raw_layers())
    changed(folder / "W_dec_1.safetensors", lambda t: t.update(W_dec_1=torch.ones(20, 3, 12)))
    refused(folder, r"W_dec_1\.safetensors: W_dec_1 is \[20, 3, 12\], expected \[20, 2, 12\]")
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text() + "gain: 2\n")
    refused(folder, r"config\.yaml: 'gain' is no setting")
    (folder / "config.yaml").unlink()
    refused(folder, r"config\.yaml: is missing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_layer_decoders": False}, r"clt_cfg\.json: cross_layer_decoders is False, expected True"),
        ({"activation_fn": "topk"}, r"activation_fn is 'topk', expected 'jumprelu'"),
        ({"n_layers": 4}, r"says n_layers = 4, but the tensors have 3"),
        ({"gain": 4}, r"'gain' is no setting"),
    ],
)
def test_clt_forges_other_kinds_are_refused(tmp_path, changes, message):
    refused(foreign.clt_forge(tmp_path, raw_layers(), FACTORS_IN, FACTORS_OUT, **changes), message)


def test_clt_forges_wrong_shapes_are_refused(tmp_path):
    folder = foreign.clt_forge(tmp_path, raw_layers(), FACTORS_IN, FACTORS_OUT)
    changed(folder / "clt_weights.safetensors", lambda t: t.update(W_dec=torch.ones(5, 20, 12)))
    refused(folder, r"clt_weights\.safetensors: W_dec is \[5, 20, 12\], expected \[6, 20, 12\]")
