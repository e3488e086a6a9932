"""Models and stores at URLs, on an S3 server that speaks HTTP."""

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import crosslayer_formats_support as across
import formats_support as foreign
import fsspec
import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML
from s3_support import KEY, SECRET
from tests_support import make_store

from transcoders import Transcoder, load
from transcoders.__main__ import main
from transcoders.activations.reader import ShuffledReader
from transcoders.activations.store import POINTER, Store, digest, point
from transcoders.core.errors import UserError
from transcoders.core.files import cache_folder
from transcoders.core.places import UnreachableError, place, redacted
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.crosslayer import files

X = torch.randn(20, foreign.D)
ROOT = Path(__file__).parents[2]
URL = "s3://bucket/deep/run-9"


def transcoder(seed=0):
    torch.manual_seed(seed)
    model = Transcoder(TranscoderConfig(d_in=12, d_out=12, d_hidden=32, k=4, provenance={"layer": 9}))
    model.load_state_dict({name: torch.randn_like(value) for name, value in model.state_dict().items()})
    return model.requires_grad_(False)


def downloads():
    return sorted(path.parent for path in cache_folder("models").rglob("*.safetensors"))


@pytest.mark.parametrize("url", [URL, URL + "/", "memory://deep/run-9", "file:///{tmp_path}/run-9"])
def test_a_model_comes_back_from_where_it_was_saved(s3, tmp_path, url):
    url, model = url.format(tmp_path=str(tmp_path).strip("/")), transcoder()
    model.save(url)
    assert torch.equal(load(url)(X), model(X))
    assert load(url).config == model.config
    assert not re.search(f"{KEY}|{SECRET}", str(model.config))


def test_a_cross_layer_transcoder_comes_back_from_where_it_was_saved(s3, tmp_path):
    model = load(across.gemma_scope_2_clt(tmp_path, across.raw_layers()))
    files.save(model, URL)
    x = torch.randn(3, across.LAYERS, across.D)
    assert torch.equal(load(URL)(x), model(x))


def test_a_model_is_downloaded_again_only_when_it_changed(s3):
    transcoder().save(URL)
    load(URL)
    [first] = downloads()
    marked = first / "marked"
    marked.touch()
    load(URL)
    assert downloads() == [first]
    assert marked.exists()
    model = transcoder(seed=1)
    model.save(URL)
    assert torch.equal(load(URL)(X), model(X))
    assert len(downloads()) == 1, "the old one is removed"
    assert downloads() != [first]


def test_an_upload_that_breaks_off_leaves_no_valid_model(s3, reconnect, monkeypatch):
    transcoder().save(URL)
    kind = fsspec.get_filesystem_class("s3")
    real = kind._put_file

    async def breaking(self, local, remote, **options):
        if remote.endswith("config.json"):
            raise ConnectionResetError
        await real(self, local, remote, **options)

    monkeypatch.setattr(kind, "_put_file", breaking)
    reconnect()
    with pytest.raises(UnreachableError, match="s3://bucket/deep/run-9: cannot be reached"):
        transcoder(seed=1).save(URL)
    assert [name.rpartition("/")[2] for name in s3.files.find("bucket")] == ["transcoder.safetensors"]
    with pytest.raises(UserError, match=r"^s3://bucket/deep/run-9, downloaded to .* holds no config\.json"):
        load(URL)


@pytest.mark.parametrize("write", [foreign.gemma_scope, foreign.gemma_scope_2, foreign.saelens, foreign.sparsify])
def test_others_transcoders_are_read_from_urls(s3, tmp_path, write):
    folder = write(tmp_path / "local", foreign.raw(threshold=write is not foreign.sparsify))
    s3.files.put(str(tmp_path / "local"), "bucket/theirs", recursive=True)
    url = f"s3://bucket/theirs/{folder.relative_to(tmp_path / 'local')}".rstrip("/.")
    here, there = load(folder), load(url)
    assert torch.equal(there(X), here(X))
    assert there.config.provenance == here.config.provenance | {"source": url}


def test_one_layer_of_a_set_is_downloaded_alone(s3, tmp_path):
    runs = []
    for layer in (0, 1):
        model = transcoder(layer)
        model.config.provenance["layer"] = layer
        config = model.config.model_copy(update={"encoder": "relu", "k": 32})
        relu = Transcoder(config)
        relu.load_state_dict(model.state_dict())
        relu.save(f"s3://bucket/runs/relu-{layer}-0")
        runs.append(f"s3://bucket/runs/relu-{layer}-0")
    command = ["x", "export", *runs, "--to", "circuit-tracer", "--out", "s3://bucket/sets/mine"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        patch.chdir(tmp_path)
        main()
        patch.setattr(sys, "argv", [*command[:-1], "s3://bucket/runs"])
        with pytest.raises(SystemExit, match="--out s3://bucket/runs: holds something that is no export"):
            main()
    loaded = load("s3://bucket/sets/mine/layer_1.safetensors")
    assert torch.allclose(loaded(X), load(runs[1])(X), atol=1e-5)
    assert not list(cache_folder("models").rglob("layer_0*"))
    with pytest.raises(UserError, match="is a set of many layers; name one of its files"):
        load("s3://bucket/sets/mine")


def test_what_went_wrong_is_one_line(s3):
    transcoder().save("s3://bucket/cut")
    weights = s3.files.cat_file("bucket/cut/transcoder.safetensors")
    s3.files.pipe_file("bucket/cut/transcoder.safetensors", weights[: len(weights) // 2])
    s3.files.pipe_file("bucket/other/notes.txt", b"nothing of ours")
    messages = {
        "s3://absent/run": "there is no such bucket, folder or file; correct the URL",
        "s3://bucket/absent": "there is no such bucket, folder or file; correct the URL",
        "s3://bucket/other": "holds none of params.npz, .*; correct the URL",
        "s3://bucket/other/params.npz": "holds none of params.npz; correct the URL",
        "s3://bucket/cut": "downloaded to .*not a readable transcoder",
        "gs://bucket/run": "Please install gcsfs",
        "nonsense://bucket/run": "Protocol not known: nonsense",
    }
    for url, message in messages.items():
        with pytest.raises(UserError, match=rf"^{url}.*{message}") as error:
            load(url)
        assert one_clean_line(error)


def one_clean_line(error):
    text = str(error.value)
    return "\n" not in text and not re.search(f"{KEY}|{SECRET}|Traceback", text) and error.value.__cause__ is None


def test_a_model_is_not_saved_to_a_bucket_that_is_not_there(s3):
    with pytest.raises(UserError, match=r"^s3://absent/run: there is no such bucket") as error:
        transcoder().save("s3://absent/run")
    assert one_clean_line(error)
    assert s3.files.ls("") == ["bucket"]


def test_without_credentials_the_remedy_is_told(s3, reconnect, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    reconnect()
    for use in (load, transcoder().save, Store, Store.is_complete):
        with pytest.raises(UserError, match=f"^{URL}: no credentials were found; set AWS_ACCESS_KEY_ID") as error:
            use(URL)
        assert one_clean_line(error)


def test_wrong_credentials_are_told_and_not_shown(s3):
    transcoder().save(URL)
    s3.check_credentials()
    for use in (load, transcoder().save, Store):
        with pytest.raises(UserError, match=f"^{URL}: access is denied; check the credentials") as error:
            use(URL)
        assert one_clean_line(error)


def test_nobody_answering_is_told_as_such(s3):
    s3.stop()
    for use in (load, transcoder().save, Store, Store.is_complete):
        with pytest.raises(UnreachableError, match=f"^{URL}: cannot be reached .*AWS_ENDPOINT_URL") as error:
            use(URL)
        assert one_clean_line(error)


def test_the_missing_extra_is_named(s3):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "s3fs", None)
        patch.delitem(sys.modules["fsspec.registry"]._registry, "s3")
        with pytest.raises(UserError, match=r"^s3://bucket/deep/run-9: .*run `pip install 'mtxplt\[s3\]'`"):
            load(URL)


def test_secrets_in_a_url_are_never_shown():
    assert redacted("sftp://me:pass@host/x?sig=abc") == "sftp://me:***@host/x"
    assert redacted("s3://bucket/a:b@c") == "s3://bucket/a:b@c"
    assert redacted("https://token@host/v1#key=abc") == "https://***@host/v1"
    assert redacted("abfs://container@account/x") == "abfs://container@account/x", "no secret, but a place"
    with pytest.raises(UserError) as error:
        load("nonsense://me:pass@host/x?sig=abc")
    assert not re.search("pass|abc", str(error.value))
    assert place("a/b") == place("a/b/")


@pytest.fixture
def stores(s3, tmp_path):
    """The same 9 000 rows here and at a URL."""
    x = torch.randn(9_000, 8)
    options = {"dtype": "bfloat16", "documents": np.arange(9_000) // 100}
    return Store(make_store(tmp_path / "s.zarr", x, -x, **options)), make_store("s3://bucket/s.zarr", x, -x, **options)


def batches(store):
    reader = ShuffledReader(
        store, np.arange(90) % 3 != 0, batch_size=300, buffer_tokens=4096, seed=0, device=torch.device("cpu")
    )
    return reader.batches()


def test_a_store_has_the_same_bytes_rows_and_training_batches_at_a_url(s3, stores):
    local, url = stores
    there = Store(url)
    files = {str(p.relative_to(local.path)): p.read_bytes() for p in local.path.rglob("*") if p.is_file()}
    assert {path: s3.files.cat_file(f"bucket/s.zarr/{path}") for path in files} == files
    assert len(s3.files.find("bucket")) == len(files) == 13
    assert there.attributes == local.attributes
    assert np.array_equal(there.labels("document"), local.labels("document"))
    assert torch.equal(there.rows("mlp_in", 5000, 8500), local.rows("mlp_in", 5000, 8500))
    for ours, theirs, _ in zip(batches(local), batches(there), range(30), strict=False):
        assert torch.equal(ours.x, theirs.x)
        assert torch.equal(ours.y, theirs.y)


def test_a_pointer_stands_for_the_store_it_was_written_for_and_for_no_other(s3, stores, tmp_path):
    local, url = stores
    point(tmp_path / "layer_9.zarr", url)
    point(tmp_path / "again.zarr", url)
    pointer = (tmp_path / "layer_9.zarr" / POINTER).read_text()
    assert json.loads(pointer) == {"url": url, "sha256": digest(url)} == {"url": url, "sha256": digest(local.path)}
    assert (tmp_path / "again.zarr" / POINTER).read_text() == pointer
    assert torch.equal(Store(tmp_path / "layer_9.zarr").rows("mlp_out", 0, 10), local.rows("mlp_out", 0, 10))
    make_store(url, torch.zeros(10, 8), torch.ones(10, 8))
    with pytest.raises(
        UserError, match=r"layer_9\.zarr: the store at s3://bucket/s\.zarr is gone, or no longer the one"
    ):
        Store(tmp_path / "layer_9.zarr")
    s3.files.rm("bucket/s.zarr", recursive=True)
    with pytest.raises(UserError, match="is gone"):
        Store(tmp_path / "layer_9.zarr")


def test_a_truncated_or_lost_object_is_refused(s3, stores):
    _, url = stores
    shard = "bucket/s.zarr/mlp_out/c/0/0"
    complete = s3.files.cat_file(shard)
    s3.files.pipe_file(shard, complete[:1000])
    with pytest.raises(UserError, match=r"^s3://bucket/s\.zarr: mlp_out is truncated or was changed; remove it"):
        Store(url)
    s3.files.pipe_file(shard, complete)
    opened = Store(url)
    for damage, message in (
        (lambda: s3.files.pipe_file(shard, complete[:-1000]), "reading or writing failed .*is it whole"),
        (lambda: s3.files.rm_file(shard), "there is no such bucket, folder or file"),
    ):
        damage()
        with pytest.raises(UserError, match=f"^s3://bucket/s.zarr: {message}") as error:
            opened.rows("mlp_out", 0, 5000)
        assert one_clean_line(error)


def test_a_server_that_goes_away_while_training_reads(s3, stores):
    _, url = stores
    reading = batches(Store(url))
    next(reading)
    s3.stop()
    with pytest.raises(UnreachableError, match=r"^s3://bucket/s\.zarr: cannot be reached") as error:
        list(islice(reading, 30))
    assert one_clean_line(error)


def test_dvc_carries_results_to_another_clone(s3, stores, tmp_path):
    """Our own stage `split`, a model and a pointer to a store: pushed, cloned, pulled; then nothing is left to do."""
    local, url = stores
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    point(first / "data/activations/layer_9.zarr", url)
    transcoder().save(first / "models/topk-9-0")
    pd.DataFrame({"title": [str(n) for n in range(90)], "tokens": 600}).to_parquet(first / "data/documents.parquet")
    shutil.copy(ROOT / "params.yaml", first)
    split = {"cmd": "python -m stages.split", "params": ["split"], "deps": ["data/documents.parquet"]}
    YAML().dump({"stages": {"split": split | {"outs": ["data/split.parquet"]}}}, first / "dvc.yaml")
    results = ["data/activations", "models/topk-9-0", "data/documents.parquet"]

    output = run(first, "git", "init", "-q") + run(first, "dvc", "init", "-q")
    run(first, "dvc", "remote", "add", "-q", "-d", "storage", "s3://bucket/project")
    endpoint = s3.environment["AWS_ENDPOINT_URL"]
    run(first, "dvc", "remote", "modify", "--local", "storage", "endpointurl", endpoint)
    output += run(first, "dvc", "add", "-q", *results) + run(first, "dvc", "repro")
    run(first, "git", "add", "-A")
    run(first, "git", "commit", "-qm", "results")
    output += run(first, "dvc", "push")
    run(tmp_path, "git", "clone", "-q", str(first), str(second))
    output += run(second, "dvc", "pull")

    assert "up to date" in run(second, "dvc", "status")
    files = sorted(p.relative_to(first) for f in ("data", "models") for p in (first / f).rglob("*") if p.is_file())
    assert {file.name for file in files} >= {"remote.json", "split.parquet", "transcoder.safetensors"}
    for file in files:
        assert (second / file).read_bytes() == (first / file).read_bytes(), file
    assert torch.equal(load(second / "models/topk-9-0")(X), transcoder()(X))
    assert torch.equal(Store(second / "data/activations/layer_9.zarr").rows("mlp_in", 0, 9), local.rows("mlp_in", 0, 9))
    written = b"".join(p.read_bytes() for root in (first, second) for p in root.rglob("*") if p.is_file())
    assert not re.search(f"{KEY}|{SECRET}", output + written.decode(errors="replace"))
    assert endpoint not in (first / ".dvc/config").read_text()


def run(folder, *command):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GIT_AUTHOR_NAME": "t",
        "GIT_AUTHOR_EMAIL": "t@example.org",
        "GIT_COMMITTER_NAME": "t",
        "GIT_COMMITTER_EMAIL": "t@example.org",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
