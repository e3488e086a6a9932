"""Two and three processes collect the bytes that one does, also after one of them was killed."""

import os
import signal
from pathlib import Path

import pytest
import torch
from collect_job import LAYERS, run
from spread import spread
from tests_support import tiny_gemma

from transcoders.activations import store
from transcoders.activations.store import Store
from transcoders.collecting.collect import DONE
from transcoders.language.model import load_bridge

JOBS = {
    "all": {},
    "short": {"max_norm": 1.5, "dtype": "int8", "codec": "zstd"},
    "alone": {"dtype": "int8", "codec": "zstd", "outputs": "recomputed"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_gemma(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def collected(model, tmp_path_factory):
    """Folders of the stores: of one process, of two of which one died, and of three that went on."""
    out = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SHARD_ROWS", "CHUNK_ROWS"):  # which `run` changes
            patch.setattr(store, name, getattr(store, name))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as the others have: on some processors a product's last bit depends on it
        for name, job in JOBS.items():
            run(load_bridge(model, torch.device("cpu")), out / "alone" / name, **job)
        torch.set_num_threads(threads)
    killed = {"short": JOBS["short"] | {"kill_after": 3}}
    statuses, stderr = spread(2, "collect_job.py", model, out / "many", jobs=killed)
    assert statuses == [1, -signal.SIGKILL], stderr
    marks = {file: file.stat().st_mtime_ns for file in (out / "many").rglob("*.npz")}
    before = {file: os.stat(file).st_mtime_ns for file in shard_files(out / "many" / "short", marks)}
    statuses, stderr = spread(3, "collect_job.py", model, out / "many", jobs=JOBS)
    assert statuses == [0, 0, 0], stderr
    return out, before


def shard_files(folder, marks):
    return [folder / mark.parents[1].name / "mlp_in" / "c" / mark.stem / "0" for mark in marks if mark.stem.isdigit()]


@pytest.mark.parametrize("name", JOBS)
def test_the_stores_have_the_bytes_of_one_process(collected, name):
    out, _ = collected
    alone, many = out / "alone" / name, out / "many" / name
    files = sorted(p.relative_to(alone) for p in alone.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(many) for p in many.rglob("*") if p.is_file())
    for file in files:
        assert (alone / file).read_bytes() == (many / file).read_bytes(), file
    for layer in LAYERS:
        opened = Store(many / f"{layer}.zarr")
        assert opened.tokens > 1000
        assert ("mlp_out" in opened.held) == (name != "alone")
        assert (opened.attributes["left_out"] > 0) == (name == "short")
        assert not (opened.path / DONE).exists()


def test_finished_shards_of_the_dead_and_of_the_living_are_kept(collected):
    _, before = collected
    assert len(before) > 3
    for file, time in before.items():
        assert Path(file).stat().st_mtime_ns == time, file


@pytest.mark.slow
def test_at_a_url_too(collected, model, s3, tmp_path):
    jobs = {"all": {"url": "s3://bucket/many"}}
    killed = {"all": jobs["all"] | {"kill_after": 3}}
    statuses, stderr = spread(2, "collect_job.py", model, tmp_path, jobs=killed)
    assert statuses == [1, -signal.SIGKILL], stderr
    statuses, stderr = spread(2, "collect_job.py", model, tmp_path, jobs=jobs)
    assert statuses == [0, 0], stderr
    assert " 0 of " not in stderr[0]
    alone = collected[0] / "alone/all"
    files = {str(p.relative_to(alone)): p.read_bytes() for p in alone.rglob("*") if p.is_file()}
    assert {path: s3.files.cat_file(f"bucket/many/{path}") for path in files} == files
    assert len(s3.files.find("bucket/many")) == len(files)
