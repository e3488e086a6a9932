"""On the real model: what is stored is what the MLP reads and what the block adds."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from transcoders.activations import store
from transcoders.activations.reader import ShuffledReader, ordered_batches
from transcoders.activations.recompute import load_mlp
from transcoders.activations.store import Store
from transcoders.collecting import collect as module
from transcoders.collecting import rows as rows_module
from transcoders.collecting.collect import collect
from transcoders.collecting.contexts import PAD, make_contexts
from transcoders.collecting.publish import layer_fingerprint, publish
from transcoders.collecting.rows import Batches
from transcoders.collecting.settings import CollectSettings, TextSettings
from transcoders.collecting.text import documents
from transcoders.core.errors import UserError
from transcoders.language.model import load_bridge, load_tokenizer
from transcoders.language.settings import HookSettings
from transcoders.language.taps import resolve_tap
from transcoders.language.tokens import special_ids

LAYERS = [0, 2]


@pytest.fixture(scope="module")
def bridge(gemma):
    return load_bridge(gemma, torch.device("cpu"))


@pytest.fixture(scope="module")
def tokenizer(gemma):
    return load_tokenizer(gemma)


@pytest.fixture(scope="module")
def contexts(tokenizer):
    articles = list(documents(TextSettings()))[:40]
    return make_contexts(articles, tokenizer, start=[2], tokens=1500, context_length=64, pool=1.0, seed=0)


def run(bridge, tokenizer, contexts, folder, **changes):
    settings = CollectSettings(**({"layers": LAYERS, "tokens": 1500, "context_length": 64} | changes))
    folder.mkdir(exist_ok=True)
    taps = [resolve_tap(bridge, layer, settings.hooks) for layer in settings.layers]
    paths = [folder / f"{layer}.zarr" for layer in settings.layers]
    extra = [{"layer": layer} for layer in settings.layers]
    batches = Batches(bridge, taps, contexts, settings.batch_size, special_ids(tokenizer))
    collect(batches, settings, paths, extra)
    return [Store(path) for path in paths]


@pytest.fixture(scope="module")
def stores(bridge, tokenizer, contexts, tmp_path_factory):
    return run(bridge, tokenizer, contexts, tmp_path_factory.mktemp("collected"))


def test_values_equal_hooks_on_the_named_hugging_face_modules(stores, bridge, contexts, gemma):
    model = AutoModelForCausalLM.from_pretrained(gemma, dtype=torch.float32, attn_implementation="sdpa")
    for opened, layer in zip(stores, LAYERS, strict=True):
        tap = resolve_tap(bridge, layer, HookSettings())
        caught = {}
        for name in (tap.hf_hook_in, tap.hf_hook_out):
            module = model.get_submodule(name.removesuffix(".output"))
            module.register_forward_hook(lambda m, i, o, name=name, into=caught: into.update({name: o}))
        context, position = opened.labels("context"), opened.labels("position")
        for row in np.unique(context)[:3]:
            tokens = contexts.tokens[row]
            with torch.inference_mode():
                model(torch.from_numpy(tokens[tokens != PAD]).long()[None])
            here = context == row
            for array, name in (("mlp_in", tap.hf_hook_in), ("mlp_out", tap.hf_hook_out)):
                stored = opened.rows(array, 0, opened.tokens)[torch.from_numpy(here)].float()
                expected = caught[name][0, position[here]]
                assert torch.allclose(stored, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().mean()))


def test_bos_and_padding_are_never_stored_and_nothing_else_is_lost(stores, contexts, tokenizer):
    for opened in stores:
        assert opened.tokens == 1500
        assert not np.isin(opened.labels("token"), special_ids(tokenizer)).any()
        assert opened.labels("position").min() == 1
        where = opened.labels("context"), opened.labels("position")
        assert np.array_equal(contexts.tokens[where], opened.labels("token"))
        assert np.array_equal(contexts.document[where[0]], opened.labels("document"))


def test_statistics_are_those_of_the_stored_values(stores):
    x = stores[0].rows("mlp_in", 0, 1500).double()
    assert stores[0].attributes["mlp_in_mean"] == pytest.approx(x.mean(0).tolist())
    assert stores[0].attributes["mlp_in_mean_square"] == pytest.approx(float(x.square().sum(1).mean()))


def test_recomputed_outputs_are_the_stored_ones_to_rounding(stores, bridge, tokenizer, contexts, tmp_path, gemma):
    found = run(bridge, tokenizer, contexts, tmp_path / "alone", outputs="recomputed")
    for alone, both, layer in zip(found, stores, LAYERS, strict=True):
        assert not (alone.path / "mlp_out").exists()
        assert torch.equal(alone.rows("mlp_in", 0, 1500), both.rows("mlp_in", 0, 1500))
        tap = resolve_tap(bridge, layer, HookSettings())
        alone.mlp = load_mlp(gemma, tap.mlp, tap.mlp_scale, torch.device("cpu"))
        y, stored = alone.rows("mlp_out", 0, 1500), both.rows("mlp_out", 0, 1500).float()
        assert float((y - stored).norm() / stored.norm()) < 2**-11, "float16 keeps 11 bits"
        for name in ("mlp_out_mean", "mlp_out_mean_square"):
            assert alone.attributes[name] == pytest.approx(both.attributes[name], rel=1e-3, abs=1e-3)


class CrashError(Exception):
    pass


def test_an_interrupted_collect_continues_to_the_same_bytes(stores, bridge, tokenizer, contexts, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_ROWS", 512)
    monkeypatch.setattr(store, "CHUNK_ROWS", 128)
    whole = run(bridge, tokenizer, contexts, tmp_path / "whole", batch_size=2, max_norm=8.0)
    calls = []
    real = rows_module.forward

    def failing(bridge, tokens, taps):
        calls.append(len(calls))
        if len(calls) in (5, 12):
            raise CrashError
        return real(bridge, tokens, taps)

    monkeypatch.setattr(rows_module, "forward", failing)
    for _ in range(2):
        with pytest.raises(CrashError):
            run(bridge, tokenizer, contexts, tmp_path / "cut", batch_size=2, max_norm=8.0)
        assert not Store.is_complete(tmp_path / "cut" / "0.zarr")
    before = len(calls)
    run(bridge, tokenizer, contexts, tmp_path / "cut", batch_size=2, max_norm=8.0)
    assert len(calls) - before < len(rows_module.batches(contexts, 2)), "nothing was continued"
    files = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "cut") for p in (tmp_path / "cut").rglob("*") if p.is_file())
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes(), file
    assert whole[0].attributes["left_out"] > 0, "layer 0 has long outputs at commas"


@pytest.mark.parametrize(
    ("layer", "hooks", "message"),
    [
        (18, {}, r"collect\.layers: layer 18 is out of range; this model has layers 0 to 17"),
        (1, {"output": "blocks.{layer}.mpl_out"}, r"collect\.hooks\.output: .*no hook point 'blocks\.1\.mpl_out'"),
        (1, {"input": "blocks.{layer}.ln2.hook_normalized"}, "no MLP of layer 1 maps"),
        (1, {"output": "blocks.{layer}.mlp.hook_out"}, "layer 1 does not add 'blocks.1.mlp.hook_out'"),
    ],
)
def test_wrong_layers_and_taps_are_refused(bridge, tokenizer, contexts, tmp_path, layer, hooks, message):
    with pytest.raises(UserError, match=message):
        run(bridge, tokenizer, contexts, tmp_path, layers=[layer], hooks=HookSettings(**hooks))
    assert not Store.is_complete(tmp_path / f"{layer}.zarr")


def test_too_small_a_disk_is_told_before_anything_is_computed(bridge, tokenizer, contexts, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"need 0\.01 GB, but the disk of .* has 0\.00 GB left"):
        run(bridge, tokenizer, contexts, tmp_path / "full")


def test_the_fingerprint_covers_what_decides_the_values(contexts, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"w")
    (tmp_path / "config.json").write_text("{}")

    def fingerprint(layer=0, code="c", **changes):
        settings = CollectSettings(**({"layers": [0], "tokens": 1500} | changes))
        return layer_fingerprint(settings, layer, contexts, tmp_path, code)

    same = fingerprint(layers=[0, 1, 2])
    assert same == fingerprint()
    others = [fingerprint(1), fingerprint(dtype="float32"), fingerprint(code="d")]
    (tmp_path / "config.json").write_text('{"hidden_act": "relu"}')
    others.append(fingerprint())
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"v")
    others.append(fingerprint())
    assert len({same, *others}) == 6


STRAYS = [
    "mlp_in/c/1/0.81c7a5ba1.partial",
    "mlp_in/.zarr.json.5ba1.partial",
    "mlp_in/c/0/.0.host.12.tmp",
    "done/0.npz",
    "fsspec.tmp",
]


def test_what_a_killed_process_left_is_not_published(stores, tmp_path):
    kept = tmp_path / "store.zarr"
    publish(stores[0].path, kept)
    for stray in STRAYS:
        (kept / stray).parent.mkdir(parents=True, exist_ok=True)
        (kept / stray).write_bytes(b"half")
    publish(kept, tmp_path / "published.zarr")
    found = {str(p.relative_to(tmp_path / "published.zarr")) for p in (tmp_path / "published.zarr").rglob("*")}
    assert {name for name in found if name.endswith((".partial", ".tmp", ".npz"))} == set()
    assert torch.equal(Store(tmp_path / "published.zarr").rows("mlp_out", 0, 9), stores[0].rows("mlp_out", 0, 9))


def test_long_tokens_are_left_out_of_what_is_read_and_of_the_statistics(bridge, tokenizer, contexts, tmp_path):
    opened, other = run(bridge, tokenizer, contexts, tmp_path / "short", max_norm=8.0)
    everything = np.ones(contexts.document.max() + 1, dtype=bool)
    x, y = (opened.rows(name, 0, opened.tokens).float() for name in ("mlp_in", "mlp_out"))
    limits = [8.0 * float(np.median(part.norm(dim=1))) for part in (x, y)]
    assert opened.attributes["norm_limits"] == pytest.approx(limits, rel=1e-3)
    inside = (x.norm(dim=1) <= limits[0]) & (y.norm(dim=1) <= limits[1])
    assert opened.attributes["left_out"] == int((~inside).sum()) > 0, "layer 0 has long outputs at commas"
    batches = list(ordered_batches(opened, everything, 10**6, torch.device("cpu")))
    assert torch.equal(torch.cat([batch.y for batch in batches]), y[inside])
    mean = y[inside].double().mean(0)
    assert opened.attributes["mlp_out_mean"] == pytest.approx(mean.tolist(), rel=1e-6, abs=1e-9)
    reader = ShuffledReader(opened, everything, batch_size=10, buffer_tokens=10_000, seed=0, device=torch.device("cpu"))
    assert reader.tokens == int(inside.sum())
    assert other.figures(1500)["stored_tokens"] == 1500 - other.attributes["left_out"]
