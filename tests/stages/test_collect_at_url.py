"""Stage `collect` with ``collect.url``: a tiny model, and an S3 server that speaks HTTP."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML
from tests_support import tiny_gemma

from stages import collect as stage
from transcoders.activations import store
from transcoders.activations.store import POINTER, Store
from transcoders.collecting import rows
from transcoders.core.errors import UserError
from transcoders.core.files import cache_folder
from transcoders.core.places import UnreachableError
from transcoders.language.model import fetch_model
from transcoders.language.settings import ModelSettings

ROOT = Path(__file__).parents[2]
URL = "s3://bucket/project"
LAYER = 1


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    fetch_model(ModelSettings(name=str(tiny_gemma(folder / "tiny"))), folder / "fetched")
    return folder / "fetched"


@pytest.fixture
def collect(s3, model, tmp_path, monkeypatch):
    """Runs the stage in a project with 60 short documents of numbers, and gives the layer's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "SHARD_ROWS", 512)
    monkeypatch.setattr(store, "CHUNK_ROWS", 256)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/model").symlink_to(model)
    rng = np.random.default_rng(0)
    numbers = rng.integers(2, 100, (60, 40)).astype(str)
    (tmp_path / "inputs/text").mkdir(parents=True)
    (tmp_path / "inputs/text/numbers.txt").write_text("\n\n".join(map(" ".join, numbers)))

    def run(**changes):
        params = YAML(typ="safe").load(ROOT / "params.yaml")
        text = {"source": "file", "path": "inputs/text/numbers.txt"}
        params["collect"] |= {"layers": [LAYER], "tokens": 1500, "context_length": 32, "text": text} | changes
        params["runs"]["layers"] = [LAYER]
        YAML().dump(params, tmp_path / "params.yaml")
        stage.main()
        return tmp_path / f"data/activations/layer_{LAYER}.zarr"

    return run


def pointer(folder):
    assert [path.name for path in folder.iterdir()] == [POINTER]
    return json.loads((folder / POINTER).read_text())


def local_contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def contents(s3, folder):
    root = pointer(folder)["url"].removeprefix("s3://")
    return {path.removeprefix(root + "/"): s3.files.cat_file(path) for path in s3.files.find(root)}


def test_the_bytes_are_those_of_a_local_store_and_no_rerun_changes_them(collect, s3, monkeypatch):
    folder = collect()
    local = local_contents(folder)
    metrics = Path("data/collect.json").read_bytes()
    said = pointer(collect(url=URL))
    assert contents(s3, folder) == local
    assert Path("data/collect.json").read_bytes() == metrics
    assert Store(folder).tokens > 1000
    other = pointer(collect(url=URL, dtype="bfloat16"))
    assert other["url"] != said["url"]
    assert Store(other["url"]).attributes["dtype"] == "bfloat16"
    before = s3.files.find("bucket", detail=True)
    monkeypatch.setattr(rows, "forward", None)  # nothing is computed
    assert pointer(collect(url=URL)) == said
    assert s3.files.find("bucket", detail=True) == before


@pytest.mark.parametrize("elsewhere", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_half_written_store_is_refused_then_continued_or_elsewhere_redone(collect, s3, monkeypatch, elsewhere):
    real, calls, last = rows.forward, [], [100]

    def counting(*arguments):
        calls.append(1)
        if len(calls) == last[0]:
            raise InterruptedError
        return real(*arguments)

    monkeypatch.setattr(rows, "forward", counting)
    whole = local_contents(collect())
    batches = len(calls)
    shutil.rmtree(cache_folder("collect"))
    last[0] = batches + 6
    with pytest.raises(InterruptedError):
        collect(url=URL)
    [half] = s3.files.ls("bucket/project", detail=False)
    assert s3.files.exists(f"{half}/mlp_out/c/0/0")
    with pytest.raises(UserError, match="the activation store is unfinished"):
        Store(f"s3://{half}")
    if elsewhere:
        shutil.rmtree(cache_folder("collect"))
    calls.clear()
    last[0] = 100
    assert contents(s3, collect(url=URL)) == whole
    assert (len(calls) < batches) == (not elsewhere)


def test_a_server_that_goes_away_while_collecting_is_one_line(collect, s3, monkeypatch):
    real = rows.forward
    monkeypatch.setattr(rows, "forward", lambda *arguments: (s3.stop(), real(*arguments))[1])
    with pytest.raises(UnreachableError, match=r"^s3://bucket/project/layer_1-\w+\.zarr: cannot be reached"):
        collect(url=URL)
    assert not Path("data/activations").exists()


def test_a_bucket_that_is_not_there_is_told_before_anything_is_computed(collect, monkeypatch):
    monkeypatch.setattr(rows, "forward", None)
    with pytest.raises(UserError, match=r"^s3://absent/project/layer_1-.*: there is no such bucket"):
        collect(url="s3://absent/project")
