"""Other libraries, each in an environment of its own, read what we write and write what we read.

``make interop`` makes the environments and runs these tests. On real activations and runs where this checkout has
them (after ``dvc repro``), on made-up ones elsewhere.
"""

import subprocess
from pathlib import Path

import crosslayer_formats_support as across
import formats_support as foreign
import pandas as pd
import pytest
import torch
from circuits_support import random_cross_layer, random_transcoders, tiny_llama
from formats_support import raw
from safetensors.torch import load_file, save_file

from transcoders import Transcoder, load
from transcoders.activations.split import documents_of
from transcoders.activations.store import Store
from transcoders.circuits.attribution import Targets, attribute
from transcoders.circuits.frozen import freeze
from transcoders.circuits.graph import Output
from transcoders.circuits.interventions import Intervention, respond_to
from transcoders.circuits.parts import take_apart
from transcoders.circuits.settings import CircuitSettings
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.crosslayer.config import CrossLayerConfig
from transcoders.dictionary.crosslayer.transcoder import CrossLayerTranscoder
from transcoders.formats.convert import Samples
from transcoders.formats.export import Trained, export, samples_of

pytestmark = pytest.mark.interop
ROOT = Path(__file__).parents[2]
STORE, SPLIT, MODELS = ROOT / "data/activations/layer_9.zarr", ROOT / "data/split.parquet", ROOT / "models"
TOKENS = 400


def theirs(environment, action, folder, x):
    python = ROOT / environment / "bin/python"
    if not python.exists():
        pytest.skip(f"{environment} is missing; `make interop` makes it")
    save_file({"x": x.contiguous()}, folder.parent / "x.safetensors")
    out = folder.parent / "out.safetensors"
    command = [python, Path(__file__).with_name("theirs.py"), action, folder, folder.parent / "x.safetensors", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out)


def in_saelens(action, folder, x):
    return theirs(".venv-interop", action, folder, x)


def in_circuit_tracer(action, folder, x):
    return theirs(".venv-circuit-tracer", action, folder, x)


def same(found, wanted):
    """To 1e-5 of the outputs' size."""
    return float((found - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


@pytest.fixture(scope="module")
def x():
    """Test tokens' MLP inputs."""
    if not (STORE.exists() and SPLIT.exists()):
        return torch.randn(TOKENS, 640, generator=torch.Generator().manual_seed(0))
    store = Store(STORE)
    test = torch.from_numpy(documents_of(pd.read_parquet(SPLIT), "test")[store.labels("document", 0, 8000)])
    return store.rows("mlp_in", 0, 8000)[test.nonzero().flatten()[:TOKENS]].float()


def made_up(encoder="topk", layer=9, d=640, **changes):
    config = {"d_in": d, "d_out": d, "d_hidden": 256, "k": 8, "input_scale": 0.5, "output_scale": 30.0}
    model = Transcoder(TranscoderConfig(encoder=encoder, **(config | {"provenance": {"layer": layer}} | changes)))
    for name, value in model.named_parameters():
        value.data = torch.randn(value.shape, generator=torch.Generator().manual_seed(layer)) * d**-0.5
        if name == "threshold":
            value.data.abs_()
    return model.requires_grad_(False)


TRAINED = sorted(path.name for path in MODELS.glob("*-9-0")) if STORE.exists() and SPLIT.exists() else []
"""Real runs; a name such as ``relu skip`` is a made-up one."""


def run_of(name):
    if name in TRAINED:
        model = load(MODELS / name)
        return Trained(name, model, samples_of(ROOT / "data", model), None)
    encoder, _, skip = name.partition(" ")
    return Trained(name, made_up(encoder, skip=bool(skip)), None, None)


@pytest.mark.parametrize(
    "name", [*TRAINED, *(f"{e}{s}" for e in ("batchtopk", "jumprelu", "relu") for s in ("", " skip"))]
)
def test_saelens_computes_the_same_from_our_export_and_writes_it_again(tmp_path, name, x):
    run = run_of(name)
    export([run], "saelens", tmp_path / "out")
    ours = load(tmp_path / "out")
    y = in_saelens("saelens_rewrite", tmp_path / "out", x)["y"]
    assert same(y, ours(x))
    assert same(load(tmp_path / "rewritten")(x), ours(x))
    if run.samples is None:
        assert same(y, run.model(x)), "an exact export"


@pytest.mark.parametrize("name", [*TRAINED, *(f"{e}{s}" for e in ("topk", "groupmax") for s in ("", " skip"))])
def test_sparsify_computes_the_same_from_our_export_and_writes_it_again(tmp_path, name, x):
    run = run_of(name)
    export([run], "sparsify", tmp_path / "out")
    ours = load(tmp_path / "out")
    assert same(in_saelens("sparsify_rewrite", tmp_path / "out", x)["y"], ours(x))
    assert same(load(tmp_path / "rewritten")(x), ours(x))
    if len(run.model.config.groups) == 1:
        assert same(ours(x), run.model(x)), "an exact export"


def test_we_read_what_saelens_itself_writes(tmp_path, x):
    (tmp_path / "new").mkdir()
    for name, y in in_saelens("saelens_new", tmp_path / "new", x).items():
        assert same(load(tmp_path / "new" / name)(x), y), name


def official(d=640, d_hidden=512, skip=False):
    t = {n: v * d**-0.5 for n, v in raw(skip, d_in=d, d_out=d, d_hidden=d_hidden).items()}
    return t | {"threshold": t["threshold"].abs() * 10}


def test_saelens_own_loader_of_gemma_scope_gives_the_same(tmp_path, x):
    folder = foreign.gemma_scope(tmp_path, official())
    assert same(in_saelens("gemma_scope", folder, x)["y"], load(folder)(x))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("config", [False, True])
def test_saelens_own_loader_of_gemma_scope_2_gives_the_same(tmp_path, x, skip, config):
    folder = foreign.gemma_scope_2(tmp_path, official(skip=skip), config)
    assert same(in_saelens("gemma_scope_2", folder, x)["y"], load(folder)(x))


@pytest.mark.parametrize("encoder", ["topk", "jumprelu", "relu"])
@pytest.mark.parametrize("skip", [False, True])
def test_circuit_tracer_computes_the_same_from_our_export_and_writes_it_again(tmp_path, x, encoder, skip):
    given = Samples(lambda: [batch(x)], lambda: [batch(x)]) if encoder == "topk" else None
    layers = [Trained(f"r-{n}", made_up(encoder, n, skip=skip), given, None) for n in range(2)]
    export(layers, "circuit-tracer", tmp_path / "out")
    found = in_circuit_tracer("circuit_tracer", tmp_path / "out", x)
    (tmp_path / "rewritten/config.yaml").write_bytes((tmp_path / "out/config.yaml").read_bytes())
    for n, run in enumerate(layers):
        ours = load(tmp_path / f"out/layer_{n}.safetensors")
        assert same(found[f"y_{n}"], ours(x))
        assert same(load(tmp_path / f"rewritten/layer_{n}.safetensors")(x), ours(x))
        if encoder != "topk":
            assert same(ours(x), run.model(x)), "an exact export"


@pytest.mark.parametrize("encoder", ["topk", "jumprelu", "relu"])
def test_circuit_tracer_computes_the_same_from_our_cross_layer_export_and_writes_it_again(tmp_path, encoder):
    model = made_up_across(encoder)
    x = torch.randn(60, 3, 16, generator=torch.Generator().manual_seed(0))
    given = Samples(lambda: [batch(x.flatten(1))], lambda: [batch(x.flatten(1))]) if encoder == "topk" else None
    export([Trained("clt", model, given, None)], "circuit-tracer", tmp_path / "out")
    ours = load(tmp_path / "out")
    y = in_circuit_tracer("cross_layer", tmp_path / "out", x.transpose(0, 1))["y"].transpose(0, 1)
    assert same(y, ours(x))
    (tmp_path / "rewritten/config.yaml").write_bytes((tmp_path / "out/config.yaml").read_bytes())
    assert same(load(tmp_path / "rewritten")(x), ours(x))
    if encoder != "topk":
        assert same(y, model(x)), "an exact export"


@pytest.mark.parametrize("skip", [False, True])
def test_circuit_tracers_own_loader_of_gemma_scope_2_across_layers_gives_the_same(tmp_path, skip):
    folder = across.gemma_scope_2_clt(tmp_path, across.raw_layers(skip=skip))
    x = torch.randn(60, across.LAYERS, across.D, generator=torch.Generator().manual_seed(0))
    y = in_circuit_tracer("gemma_scope_2_clt", folder, x.transpose(0, 1))["y"].transpose(0, 1)
    assert same(y, load(folder)(x))


def made_up_across(encoder):
    scales = {"input_scales": (0.5, 2.0, 1.0), "output_scales": (30.0, 3.0, 0.3)}
    config = CrossLayerConfig(layers=(0, 1, 2), encoder=encoder, d_model=16, d_hidden=48, k=4, **scales)
    model, generator = CrossLayerTranscoder(config), torch.Generator().manual_seed(0)
    for number in range(3):
        for name, value in model.tensors(number).items():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.25)
            if name == "threshold":
                value.abs_()
    return model.requires_grad_(False)


def batch(x):
    from transcoders.activations.reader import LabelledBatch

    labels = torch.zeros(len(x)).int().numpy()
    return LabelledBatch(x, x, labels, labels)


@pytest.mark.parametrize("kind", ["single", "across"])
def test_graphs_and_interventions_are_circuit_tracers(tmp_path, kind):
    """Its adjacency to 1e-4 of the largest effect, its logits to 1e-3, whatever is frozen."""
    llama = tiny_llama().float()
    llama.save_pretrained(tmp_path / "llama")
    config = {"encoder": "jumprelu", "k": 5}
    if kind == "across":
        ours = random_cross_layer(**config)
        trained = [Trained("clt", ours, None, None)]
    else:
        ours = {n: random_transcoders([n], seed=n, provenance={"layer": n}, **config)[n] for n in range(4)}
        trained = [Trained(f"r-{n}", single, None, None) for n, single in ours.items()]
    export(trained, "circuit-tracer", tmp_path / "out")
    tokens = torch.tensor([1, 7, 31, 7, 12, 44])  # begins as its tokenizer wants it
    frozen = freeze(take_apart(llama), ours, tokens)
    targets = Targets([Output("a", 3, 1.0, 0.1)], frozen.parts.unembedding[3][None])
    graph = attribute(frozen, targets, CircuitSettings())
    columns = (graph.layer, graph.position, graph.latent, graph.value)
    strongest = graph.value.argsort(descending=True)[:3].tolist()
    rows = [[float(column[i]) for column in columns[:3]] + [2.5 * float(graph.value[i])] for i in strongest]
    asked = torch.stack([tokens.float(), *(torch.tensor([*row, 0, 0]) for row in rows)])
    found = in_circuit_tracer("circuits", tmp_path / "out", asked)
    assert torch.allclose(found["clean"][0], llama(tokens[None]).logits[0], atol=1e-4)

    assert found["features"].tolist() == torch.stack(columns[:3], 1).tolist()
    assert len(found["selected"]) == len(graph.layer), "all are traced"
    active = len(graph.layer)
    theirs_of = found["adjacency"][:active, : graph.embeddings.stop]
    order = graph.rows.argsort()
    ours_of = graph.effects[1:][order]
    at_start = torch.zeros(graph.embeddings.stop, dtype=torch.bool)
    at_start[graph.errors] = torch.arange(graph.errors.stop - graph.errors.start) % len(tokens) == 0
    assert (theirs_of[:, at_start] == 0).all(), "it leaves out what MLPs put out at the first position; ours are errors"
    assert float((theirs_of - ours_of)[:, ~at_start].abs().max()) < 1e-4 * float(ours_of.abs().max())

    case = [Intervention(int(layer), int(latent), int(position), value) for layer, position, latent, value in rows]
    for way in ("all", "attention", "nothing"):
        states = respond_to(frozen, ours, [case], way).states[1]
        logits = frozen.parts.head.logits(states)
        assert float((found[way][0] - logits).abs().max()) < 1e-3 * float(logits.abs().max()), way


def test_circuit_tracer_attributes_with_our_transcoders(tmp_path):
    layers = [made_up("jumprelu", n, d=12, d_hidden=40, input_scale=1.0, output_scale=1.0) for n in range(2)]
    for model in layers:
        model.threshold.zero_()
    export([Trained(f"r-{n}", m, None, None) for n, m in enumerate(layers)], "circuit-tracer", tmp_path / "out")
    found = in_circuit_tracer("attribute", tmp_path / "out", torch.zeros(1, 12))
    assert len(found["features"]) > 10
    assert set(found["features"][:, 0].tolist()) == {0, 1}, "latents of both layers are in the graph"
    assert (found["activations"] > 0).all()
    assert found["adjacency"].isfinite().all()
    assert found["adjacency"].abs().sum() > 0
    assert 0 < found["kept"].sum() <= len(found["kept"])
