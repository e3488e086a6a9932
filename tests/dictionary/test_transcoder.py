import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from transcoders import Transcoder
from transcoders.core.errors import UserError
from transcoders.dictionary.config import TranscoderConfig


def make(**changes):
    config = TranscoderConfig(
        **({"d_in": 6, "d_out": 5, "d_hidden": 20, "k": 3, "input_scale": 2.0, "output_scale": 10.0} | changes)
    )
    model = Transcoder(config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_()
    return model.requires_grad_(False)


@pytest.mark.parametrize("skip", [False, True])
def test_the_forward_pass_is_the_formula(skip):
    model, x = make(skip=skip), torch.randn(7, 6)
    pre = (x / 2.0) @ model.W_enc.T + model.b_enc
    top = pre.topk(3, dim=1)
    z = torch.zeros(7, 20).scatter(1, top.indices, top.values.relu())
    y = z @ model.W_dec + model.b_dec + ((x / 2.0) @ model.W_skip.T if skip else 0)
    assert torch.allclose(model(x), y * 10.0, atol=1e-4)
    assert torch.allclose(model.encode(x).dense(), z, atol=1e-5)
    assert torch.allclose(model.decode(model.encode(x), x), y * 10.0, atol=1e-4)


def test_batch_dimensions_are_kept():
    model, x = make(), torch.randn(2, 3, 6)
    assert model(x).shape == (2, 3, 5)
    assert torch.allclose(model(x)[1, 2], model(x[1, 2][None])[0], atol=1e-5)


def test_forward_with_info_tells_what_was_active():
    model, x = make(), torch.randn(7, 6)
    output = model.forward_with_info(x)
    dense = output.latents.dense()
    assert torch.equal(output.l0, (dense > 0).sum(1).float())
    assert torch.allclose(output.l1, dense.sum(1))
    assert torch.equal(output.active, (dense > 0).any(0).nonzero().flatten())
    assert torch.allclose(output.y_hat, model(x))


def test_decoding_a_skip_transcoder_needs_x():
    model = make(skip=True)
    with pytest.raises(ValueError, match="needs x"):
        model.decode(model.encode(torch.randn(2, 6)))


@pytest.mark.parametrize("skip", [False, True])
def test_saving_and_loading_keeps_everything(tmp_path, skip):
    model, x = make(skip=skip, provenance={"layer": 3}), torch.randn(4, 6)
    model.save(tmp_path / "run")
    loaded = Transcoder.load(tmp_path / "run")
    assert loaded.config == model.config
    assert torch.equal(loaded(x), model(x))
    first = [(tmp_path / "run" / name).read_bytes() for name in ("config.json", "transcoder.safetensors")]
    loaded.save(tmp_path / "again")
    assert first == [(tmp_path / "again" / name).read_bytes() for name in ("config.json", "transcoder.safetensors")]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing: holds no config\.json"):
        Transcoder.load(tmp_path / "nothing")


def test_damaged_files_are_refused(tmp_path):
    make().save(tmp_path)
    weights = tmp_path / "transcoder.safetensors"
    good = weights.read_bytes()
    for bad in (good[:50], pickle.dumps({"W_enc": 1})):
        weights.write_bytes(bad)
        with pytest.raises(UserError, match="not a readable transcoder"):
            Transcoder.load(tmp_path)


def test_wrong_shapes_and_keys_are_refused(tmp_path):
    make().save(tmp_path)
    weights = tmp_path / "transcoder.safetensors"
    tensors = load_file(weights)
    for wrong in ({**tensors, "W_dec": tensors["W_dec"].T.contiguous()}, {**tensors, "k": torch.ones(1)}):
        save_file(wrong, weights)
        with pytest.raises(UserError, match="not of one transcoder"):
            Transcoder.load(tmp_path)


def test_an_unknown_key_in_the_config_is_refused(tmp_path):
    make().save(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"k"', '"kk"'))
    with pytest.raises(UserError, match="kk"):
        Transcoder.load(tmp_path)


def test_k_beyond_the_latents_is_refused():
    with pytest.raises(ValueError, match="k = 21 is more than d_hidden = 20"):
        make(k=21)
