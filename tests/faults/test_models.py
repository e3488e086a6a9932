"""A base model that brings code, or pickles, or half a file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkout import write_model

from transcoders.core.errors import UserError
from transcoders.language.model import fetch_model, load_bridge, load_model, load_tokenizer
from transcoders.language.settings import ModelSettings

CPU = torch.device("cpu")
LOADERS = {
    "tokenizer": load_tokenizer,
    "model": lambda folder: load_model(folder, CPU),
    "bridge": lambda folder: load_bridge(folder, CPU),
}


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_model(folder)
    return folder


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", ["gemma3_text", "a_kind_of_its_own"])
def test_the_code_of_a_model_is_not_run(complete: Path, tmp_path: Path, loader: str, kind: str) -> None:
    folder, trace = Path(shutil.copytree(complete, tmp_path / "m")), tmp_path / "ran"
    (folder / "bomb.py").write_text(f"import os\nos.mkdir({str(trace)!r})\n")
    names = {"AutoConfig": "bomb.C", "AutoModelForCausalLM": "bomb.M", "AutoTokenizer": ["bomb.T", "bomb.T"]}
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        content |= {"auto_map": names, "model_type": kind, "tokenizer_class": "T"}
        (folder / name).write_text(json.dumps(content))
    message = ""
    try:
        LOADERS[loader](folder)
    except UserError as error:
        message = str(error)
    assert not trace.exists()
    assert "\n" not in message
    assert message.startswith("model.name: ") or kind == "gemma3_text"


@pytest.mark.parametrize("loader", ["model", "bridge"])
def test_half_a_model_is_told_in_one_line(complete: Path, tmp_path: Path, loader: str) -> None:
    folder = Path(shutil.copytree(complete, tmp_path / "m"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"^model\.name: .*run `dvc repro model`") as caught:
        LOADERS[loader](folder)
    assert "\n" not in str(caught.value)


def test_a_link_that_leads_nowhere_is_named(complete: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(complete, tmp_path / "m"))
    (folder / "more.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"^model\.name: '\S+/more\.safetensors' is a link to a file that is not there"):
        fetch_model(ModelSettings(name=str(folder)), tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


@pytest.mark.parametrize("method", [{"quant_method": "fp8"}, {"quant_method": "bitsandbytes", "load_in_4bit": True}, 8])
def test_quantised_weights_are_refused_by_their_method(complete: Path, tmp_path: Path, method: object) -> None:
    folder = Path(shutil.copytree(complete, tmp_path / "m"))
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "quantization_config": method}))
    kind = method["quant_method"] if isinstance(method, dict) else method
    with pytest.raises(UserError, match=rf"^model\.name: .* are quantised \({kind}\).*; choose a model"):
        fetch_model(ModelSettings(name=str(folder)), tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_a_copied_model_may_be_read_by_whom_the_umask_lets(complete: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(complete, tmp_path / "m"))
    (folder / "model.safetensors").chmod(0o600)
    fetch_model(ModelSettings(name=str(folder)), tmp_path / "fetched")
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "fetched").iterdir()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


def test_pickled_weights_are_refused(complete: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(complete, tmp_path / "m"))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=r"no safetensors weights.*pickled weights are never loaded"):
        fetch_model(ModelSettings(name=str(folder)), tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()
