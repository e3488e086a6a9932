"""Cross-layer transcoders: what they learn, exactness beside single ones, variants, resuming, files."""

import numpy as np
import pytest
import torch
from crosslayer_support import EVERYTHING, WIDTH, cross_layer_trainer, layered_stores
from tests_support import make_store
from training_support import DEVICE, run, trainer

from transcoders.activations.layers import LayersReader, check_alike
from transcoders.activations.reader import ShuffledReader
from transcoders.activations.store import Store
from transcoders.core.errors import UserError
from transcoders.dictionary.crosslayer import files

NESTED = {"prefixes": [0.25, 1.0], "prefix_k": [0.5, 1.0]}
VARIANTS = {
    "topk": {},
    "own_layer": {"reach": 0},
    "one_further": {"reach": 1},
    "token_budget": {"budget": "token"},
    "skip": {"skip": True},
    "batchtopk": {"encoder": "batchtopk"},
    "jumprelu": {"encoder": "jumprelu"},
    "jumprelu_tanh": {"encoder": "jumprelu", "tanh_penalty": 4.0},
    "nested": NESTED,
    "progressive": {**NESTED, "training": "progressive"},
    "projection": {**NESTED, "training": "progressive", "orthogonality": "projection"},
    "ortsae": {"orthogonality": "penalty"},
}


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    return layered_stores(tmp_path_factory.mktemp("layers"))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns_and_keeps_its_rules(layers, tmp_path, name):
    limit = 0.9 if name == "own_layer" else 0.6
    t = cross_layer_trainer(layers, tmp_path / "c", VARIANTS[name])
    result = run(t)
    nmse = [row["validation_nmse"] for row in result.history if row["validation_nmse"] is not None]
    assert result.best_nmse < limit
    assert result.best_nmse <= nmse[0]
    for source in result.model.sources:
        torch.testing.assert_close(source.W_dec.norm(dim=1), torch.ones(32, device=DEVICE))
        assert not source.b_dec.any()
    assert result.history[-1]["l0"] == pytest.approx(3 * 4, rel=0.35)


def test_latents_that_reach_later_layers_explain_more(layers, tmp_path):
    across, own = (run(cross_layer_trainer(layers, tmp_path / str(n), {"reach": n})) for n in ("all", 0))
    assert across.best_nmse < 0.8 * own.best_nmse
    assert across.model.share_of_later_layers()[0].mean() > 0.3
    assert not across.model.share_of_later_layers()[-1].any()
    assert not own.model.share_of_later_layers().any()


def test_without_reach_the_losses_are_those_of_single_transcoders(layers, tmp_path):
    """Every layer starts at the weights of its single transcoder, and clipping, which is of all layers, is far off."""
    changes = {"gradient_clip": 1e6, "aux_coefficient": 0.0, "epochs": 1, "d_hidden": 64}
    together = cross_layer_trainer(layers, tmp_path / "c", {"reach": 0}, **changes)
    singles = [trainer(store, tmp_path / str(n), **changes) for n, store in enumerate(layers)]
    together._begin()
    for single, source, first in zip(singles, together.model.sources, together.model.firsts, strict=True):
        single._begin()
        for name in ("W_enc", "b_enc", "W_dec"):
            getattr(source, name).data.copy_(getattr(single.model, name))
        together.model.b_dec.data[first : first + WIDTH] = single.model.b_dec.data
    trainers, losses = [together, *singles], []
    for batches in zip(*(t._batches() for t in trainers), strict=True):
        reports = []
        for t, batch in zip(trainers, batches, strict=True):
            report = t.stepper.take(t.phase, batch, t.state.step, t.state.dead(t.phase.plan, 10**9))
            t.state.count(report, t.phase.plan)
            reports.append(float(report.nmse))
        losses.append((reports[0], sum(reports[1:]) / len(singles)))
    assert len(losses) == 30
    assert all(together == pytest.approx(alone, abs=1e-6) for together, alone in losses)
    assert losses[-1][0] < 0.9 * losses[0][0]


@pytest.mark.parametrize("name", ["batchtopk", "progressive", "token_budget"])
def test_an_interrupted_run_ends_with_the_same_bytes(layers, tmp_path, name):
    expected = run(cross_layer_trainer(layers, tmp_path / "a", VARIANTS[name]))

    def kill(history):
        if history.rows[-1]["step"] >= 45:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cross_layer_trainer(layers, tmp_path / "b", VARIANTS[name]).train(kill)
    resumed = cross_layer_trainer(layers, tmp_path / "b", VARIANTS[name])
    result = run(resumed)
    assert result.history == expected.history
    for key, value in expected.model.state_dict().items():
        assert torch.equal(result.model.state_dict()[key], value), key


def test_micro_batches_take_the_same_steps(layers, tmp_path):
    rows = [
        run(
            cross_layer_trainer(layers, tmp_path / str(size), {"encoder": "batchtopk"}, epochs=1, micro_batch_size=size)
        )
        for size in (None, 66)
    ]
    assert rows[1].best_nmse == pytest.approx(rows[0].best_nmse, rel=1e-3)


def test_a_token_budget_takes_the_largest_of_all_layers(layers, tmp_path):
    t = cross_layer_trainer(layers, tmp_path / "c", {"budget": "token"})
    t._begin()
    batch = next(iter(t.job.reader.batches()))
    x, _ = t.model.normalised(*batch)
    latents = t.model.encode_sources(x)
    parts = zip(t.model.sources, t.model.inputs(x), strict=True)
    pre = torch.cat([x_of @ source.W_enc.T + source.b_enc for source, x_of in parts], 1).relu()
    dense = torch.cat([of_layer.dense() for of_layer in latents], 1)
    kept = pre.topk(12).values
    assert sum(len(of_layer.values) for of_layer in latents) == 12 * len(x)
    torch.testing.assert_close(dense.sort(descending=True).values[:, :12], kept)
    # One layer may take all of a token's latents: more than are looked at first.
    source = t.model.sources[1]
    source.b_enc.data[:20] += 100
    assert all(len(row.unique()) == 12 for row in t.model.encode_sources(x)[1].indices.view(len(x), 12))


def test_files_give_the_same_model_and_damage_is_refused(layers, tmp_path):
    model = run(cross_layer_trainer(layers, tmp_path / "c", {"skip": True, **NESTED}, epochs=1)).model
    files.save(model, tmp_path / "saved")
    assert {file.name for file in (tmp_path / "saved").iterdir()} == {
        "config.json",
        *(f"layer_{n}.safetensors" for n in range(3)),
    }
    loaded = files.load(tmp_path / "saved", DEVICE)
    x = torch.stack([store.rows("mlp_in", 0, 50).float() for store in layers], 1).to(DEVICE)
    assert torch.equal(loaded(x), model(x))
    assert torch.equal(loaded.truncate(8)(x), model.truncate(8)(x))
    file = tmp_path / "saved" / "layer_1.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"layer_1\.safetensors: is damaged"):
        files.load(tmp_path / "saved")
    file.unlink()
    with pytest.raises(UserError, match=r"holds no layer_1\.safetensors"):
        files.load(tmp_path / "saved")


def test_prefixes_add_up_and_each_is_a_smaller_one(layers, tmp_path):
    model = run(cross_layer_trainer(layers, tmp_path / "c", NESTED, epochs=1)).model
    x = torch.cat([store.rows("mlp_in", 0, 50).float() for store in layers], 1).to(DEVICE)
    y = torch.cat([store.rows("mlp_out", 0, 50).float() for store in layers], 1).to(DEVICE)
    normalised, _ = model.normalised(x, y)

    def decoded(part):
        return part.decode_sources(part.encode_sources(normalised), normalised)

    torch.testing.assert_close(decoded(model.part(0, 8)) + decoded(model.part(8, 32)), decoded(model))
    with torch.no_grad():
        assert model.truncate(8).squared_error(x, y) > model.squared_error(x, y)


def test_stores_of_different_tokens_are_refused(layers, tmp_path):
    check_alike(layers)
    x = torch.randn(6000, WIDTH)
    other = Store(make_store(tmp_path / "other.zarr", x, x, documents=np.arange(6000)))
    with pytest.raises(UserError, match=r"not of the same tokens \(document differ\)"):
        check_alike([layers[0], other])
    fewer = Store(make_store(tmp_path / "fewer.zarr", x[:50], x[:50]))
    with pytest.raises(UserError, match=r"not of the same tokens \(tokens differ\)"):
        check_alike([layers[0], fewer])


def test_layers_are_read_in_one_order(layers):
    options = {"batch_size": 100, "buffer_tokens": 4096, "seed": 3, "device": torch.device("cpu")}
    reader = LayersReader([ShuffledReader(store, EVERYTHING, **options) for store in layers])
    batch = next(iter(reader.batches(2)))
    found = [
        (store.rows("mlp_in", 0, 6000).float()[:, None] == batch.x[None, :5, n * WIDTH : (n + 1) * WIDTH]).all(2)
        for n, store in enumerate(layers)
    ]
    assert found[0].sum() == 5
    assert all(torch.equal(of_layer, found[0]) for of_layer in found)
