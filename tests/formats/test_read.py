import io
import json
import pickle
import subprocess
import sys
import zipfile

import formats_support as foreign
import numpy as np
import pytest
import torch
from formats_support import D, F, expected, raw
from safetensors.torch import load_file, save_file

from transcoders import load
from transcoders.core.errors import UserError

X = torch.randn(30, D, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("config", [False, True])
def test_gemma_scope_2_is_read_with_and_without_its_config(tmp_path, skip, config):
    t = raw(skip)
    folder = foreign.gemma_scope_2(tmp_path, t, config)
    model = load(folder)
    assert torch.allclose(model(X), expected(t, X), atol=1e-5)
    assert (model.config.input_scale, model.config.output_scale) == (1, 1)
    provenance = model.config.provenance
    assert provenance["layer"] == 9
    assert provenance["model"] == "google/gemma-3-270m"
    assert provenance["hf_hook_in"] == "model.layers.9.pre_feedforward_layernorm.output"
    assert provenance["hf_hook_out"] == "model.layers.9.post_feedforward_layernorm.output"
    assert torch.equal(load(folder / "params.safetensors")(X), model(X)), "the file itself may be named"


def test_gemma_scope_is_read_and_says_that_its_input_has_no_gain(tmp_path):
    t = raw()
    model = load(foreign.gemma_scope(tmp_path, t))
    assert torch.allclose(model(X), expected(t, X), atol=1e-5)
    provenance = model.config.provenance
    assert (provenance["layer"], provenance["model"], model.config.k) == (3, "google/gemma-2-2b", 8)
    assert provenance["gain_applied"] is False


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("threshold", [False, True])
def test_saelens_is_read_in_each_of_its_architectures(tmp_path, skip, threshold):
    t = raw(skip, threshold, d_out=7)
    model = load(foreign.saelens(tmp_path, t))
    assert torch.allclose(model(X), expected(t, X), atol=1e-5)
    assert model.config.provenance["layer"] == 4


@pytest.mark.parametrize("skip", [False, True])
def test_sparsify_is_read(tmp_path, skip):
    t = raw(skip, threshold=False)
    model = load(foreign.sparsify(tmp_path, t))
    assert torch.allclose(model(X), expected(t, X, k=5), atol=1e-5)
    assert model.config.provenance["layer"] == 4


def test_a_layer_of_a_circuit_tracer_set_is_read(tmp_path):
    layers = [raw(), raw(seed=1)]
    folder = foreign.circuit_tracer(tmp_path, layers)
    model = load(folder / "layer_1.safetensors")
    assert torch.allclose(model(X), expected(layers[1], X), atol=1e-5)
    with pytest.raises(UserError, match=r"set of many layers; name one of its files"):
        load(folder)


def test_what_was_read_is_saved_and_loaded_as_ours(tmp_path):
    model = load(foreign.gemma_scope_2(tmp_path, raw(skip=True)))
    model.save(tmp_path / "ours")
    assert torch.equal(load(tmp_path / "ours")(X), model(X))


def test_16_bit_weights_stay_so_and_are_computed_with_in_float32(tmp_path):
    t = {name: value.bfloat16() for name, value in raw(skip=True).items()}
    model = load(foreign.gemma_scope_2(tmp_path, t))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.allclose(model(X), expected({n: v.float() for n, v in t.items()}, X), atol=1e-4)
    t = {name: value.bfloat16() for name, value in raw(threshold=False).items()}
    model = load(foreign.sparsify(tmp_path, t))
    assert torch.allclose(model(X), expected({n: v.float() for n, v in t.items()}, X, k=5), atol=1e-4)


MEASURE = """
import sys, torch
from pathlib import Path
from transcoders import load
import transcoders.formats.read
def status(key):
    return 1024 * int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1])
load(sys.argv[2])  # what the first call of anything costs
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
model = load(sys.argv[1])
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's memory counters")
def test_a_wide_file_is_read_within_its_own_size_and_a_tenth(tmp_path):
    wide = {
        name: torch.zeros(shape, dtype=torch.bfloat16)
        for name, shape in {
            "W_enc": (131072, 640),
            "W_dec": (131072, 640),
            "b_enc": (131072,),
            "b_dec": (640,),
            "threshold": (131072,),
        }.items()
    }
    folder = foreign.gemma_scope_2(tmp_path / "wide", wide)
    small = foreign.gemma_scope_2(tmp_path / "small", raw())
    done = subprocess.run([sys.executable, "-c", MEASURE, folder, small], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    size = (folder / "params.safetensors").stat().st_size
    assert size > 300e6
    assert int(done.stdout) < 1.1 * size


def changed(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("threshold"), r"needs threshold; the file holds b_dec, .*another kind"),
        (lambda t: t.update(extra=torch.ones(1)), r"does not know extra"),
        (
            lambda t: t.update(w_enc=t["w_enc"].T),
            r"w_enc is \[40, 12\], expected \[12, 40\]; it is transposed: save w_",
        ),
        (
            lambda t: t.update(w_dec=t["w_dec"].T),
            r"w_dec is \[12, 40\], expected \[40, 12\]; it is transposed: save w_",
        ),
        (lambda t: t.update(w_dec=torch.ones(39, 12)), r"w_dec is \[39, 12\], expected \[40, 12\]; are these tensors"),
        (lambda t: t.update(w_enc=torch.ones(12, 39)), r"w_enc is \[12, 39\], which does not fit the 40 latents"),
        (lambda t: t.update(b_enc=torch.ones(40, 1)), r"b_enc is \[40, 1\], expected one dimension"),
        (lambda t: t.update(w_dec=torch.ones(40, 2, 12)), r"w_dec is \[40, 2, 12\], expected \[40, 12\]"),
        (lambda t: t.update(b_dec=torch.ones(12).int()), r"holds numbers of type I32"),
        (
            lambda t: t.update(b_enc=t["b_enc"].double()),
            r"holds tensors of float32, float64 side by side; save all of them in one",
        ),
    ],
)
def test_wrong_tensors_are_refused_in_one_line(tmp_path, change, message):
    folder = foreign.gemma_scope_2(tmp_path, raw())
    changed(folder / "params.safetensors", change)
    refused(folder, message)


def refused(path, message):
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: foreign.gemma_scope_2(p, raw(), architecture="topk"), r"architecture is 'topk'; known: 'jump_relu'"),
        (lambda p: foreign.gemma_scope_2(p, raw(), affine_connection=True), r"affine_connection is true, but .* lacks"),
        (
            lambda p: foreign.gemma_scope_2(p, raw(), hf_hook_point_in="model.layers.5.mlp.input"),
            r"config\.json says layer 5, the folder's name layer 9",
        ),
        (lambda p: foreign.saelens(p, raw(), architecture="matryoshka"), r"architecture is 'matryoshka'; transcoders"),
        (lambda p: foreign.saelens(p, raw(), normalize_activations="layer_norm"), r"normalize_activations .*fold it"),
        (lambda p: foreign.saelens(p, raw(), d_in=640), r"says d_in = 640, but the tensors have 12"),
        (lambda p: foreign.saelens(p, raw(), architecture="transcoder"), r"does not know threshold"),
        (lambda p: foreign.sparsify(p, raw(threshold=False), transcode=False), r"an autoencoder maps a place"),
        (lambda p: foreign.sparsify(p, raw(threshold=False), activation="relu"), r"activation is 'relu'; known: topk"),
        (lambda p: foreign.sparsify(p, raw(threshold=False), k=None), r"k is None"),
        (lambda p: foreign.sparsify(p, raw(threshold=False), d_in=640), r"says d_in = 640, but the tensors have 12"),
        (
            lambda p: foreign.sparsify(p, raw(threshold=False), num_latents=41),
            r"says num_latents = 41, but the tensors have 4",
        ),
        (lambda p: foreign.sparsify(p, raw(threshold=False), signed=True), r"cfg\.json: signed is True, expected"),
        (lambda p: foreign.sparsify(p, raw(threshold=False), rotate=1), r"cfg\.json: 'rotate' is no setting"),
        (lambda p: foreign.saelens(p, raw(), activation_fn="tanh-relu"), r"activation_fn is 'tanh-relu', expected"),
        (lambda p: foreign.saelens(p, raw(), input_shift=2.0), r"cfg\.json: 'input_shift' is no setting"),
        (lambda p: foreign.gemma_scope_2(p, raw(), temperature=2), r"config\.json: 'temperature' is no setting"),
    ],
)
def test_contradicting_settings_are_refused_in_one_line(tmp_path, make, message):
    refused(make(tmp_path), message)


@pytest.mark.parametrize(
    ("name", "config", "layer"),
    [
        ("l0.safetensors", "transcoders: [l0.safetensors, l1.safetensors]\n", 0),
        ("last.safetensors", "transcoders: ['hf://someone/else', 'hf://org/repo/last.safetensors']\n", 1),
        ("layer_1.safetensors", "", 1),
        ("l0.safetensors", "", r"l0\.safetensors: the layers .* say: none; name it layer_<i>"),
        ("layer_2.safetensors", "transcoders: [layer_2.safetensors]\n", r"say: 0 and 2; name it layer_<i>"),
        ("same.safetensors", "transcoders: [a/same.safetensors, b/same.safetensors]\n", r"say: 0 and 1; name it"),
        ("layer_0.safetensors", "transcoders: layer_0.safetensors\n", r"transcoders is no list"),
        ("layer_0.safetensors", "model_kind: cross_layer_transcoder\n", r"model_kind is 'cross_layer_transcoder', exp"),
        ("layer_0.safetensors", "gain: 2\n", r"config\.yaml: 'gain' is no setting that is known"),
    ],
)
def test_the_layer_of_a_file_in_a_set_is_known_or_asked_for(tmp_path, name, config, layer):
    folder = foreign.circuit_tracer(tmp_path, [raw()])
    (folder / "layer_0.safetensors").rename(folder / name)
    provenance = (folder / "config.yaml").read_text()
    if config.startswith("model_kind"):
        provenance = provenance.replace("model_kind: transcoder_set\n", "")
    (folder / "config.yaml").write_text(provenance + config)
    refused(folder, rf"is a set of many layers; name one of its files, such as \S+/{name}")
    if isinstance(layer, int):
        assert load(folder / name).config.provenance["layer"] == layer
    else:
        refused(folder / name, layer)


def test_an_autoencoder_of_gemma_scope_is_refused(tmp_path):
    folder = foreign.gemma_scope_2(tmp_path, raw())
    other = tmp_path / "gemma-scope-2-270m-pt/resid_post/layer_9_width_16k_l0_small"
    other.parent.mkdir()
    folder.rename(other)
    refused(other, "no per-layer transcoder")


def test_truncated_files_are_refused(tmp_path):
    second, first = foreign.gemma_scope_2(tmp_path, raw()), foreign.gemma_scope(tmp_path, raw())
    for file in (second / "params.safetensors", first / "params.npz"):
        content = file.read_bytes()
        for size in (0, 5, 100, len(content) - 200):
            file.write_bytes(content[:size])
            refused(file.parent, r"not (whole safetensors|a whole npz file).*; delete it and download it again")
    (second / "config.json").write_text('{"architecture": ')
    (second / "params.safetensors").unlink()
    save_file({"w_enc": torch.ones(2, 2)}, second / "params.safetensors")
    refused(second, r"config\.json: not readable JSON")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_pickles_in_disguise_are_refused_and_never_unpickled(tmp_path):
    first, second = foreign.gemma_scope(tmp_path, raw()), foreign.gemma_scope_2(tmp_path, raw())
    buffer = io.BytesIO()
    torch.save({"w_enc": Bomb()}, buffer)
    for content in (pickle.dumps(Bomb()), buffer.getvalue()):
        (second / "params.safetensors").write_bytes(content)
        refused(second, "is a pickle, .* not opened")
        (first / "params.npz").write_bytes(content)
        refused(first, "is a pickle|holds .*data.pkl, not only arrays")
    np.savez(first / "params.npz", W_enc=np.array([Bomb()], dtype=object))
    refused(first, r"W_enc\.npy holds pickled objects")
    with zipfile.ZipFile(first / "params.npz", "w") as archive:
        archive.writestr("W_enc.npy", b"nothing")
    refused(first, "not a whole npz")


def test_what_is_not_there_or_not_known_is_named(tmp_path):
    refused(tmp_path, r"holds nothing; expected transcoder\.safetensors \(ours\), params\.npz, params\.safetensors")
    (tmp_path / "ae.pt").touch()
    refused(tmp_path, r"holds only pickles \(ae\.pt\)")
    refused(tmp_path / "ae.pt", r"pickles")
    refused(str(tmp_path / "no:where"), r"no such file or folder")


def test_every_message_is_json_safe(tmp_path):
    model = load(foreign.gemma_scope(tmp_path, raw()))
    assert json.loads(json.dumps(model.config.provenance)) == model.config.provenance
    assert model.config.d_hidden == F
