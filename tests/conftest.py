"""What tests share: the real base model, fetched once a machine, an S3 server on this machine, a browser."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read once, by torch's import
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic training on CUDA asks for

import pytest
import torch
from filelock import FileLock
from s3_support import S3, forget_connections
from xdist.scheduler import LoadScopeScheduling

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reached the Hub would pass here and fail elsewhere
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # the same kernels, run by numpy; read once, at their import

from transcoders.core.files import cache_folder
from transcoders.language.model import fetch_model
from transcoders.language.settings import ModelSettings

torch.set_num_threads(2)

TOGETHER = ("tests/test_pipeline.py", "tests/faults")
"""A file and a folder that begin first, and that one process each should work on: their fixtures take minutes."""


def shared_by(nodeid: str) -> str:
    """Return the folder or file whose tests one process works on, as they share what is made once."""
    file = nodeid.partition("::")[0]
    return next((place for place in TOGETHER if file.startswith(place)), file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest tests begin first, so that no process waits for them at the end."""
    items.sort(key=lambda item: shared_by(item.nodeid) not in TOGETHER)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Deal the tests to the processes that share them (`make test`) by folder and file."""

    class ByPlace(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return shared_by(nodeid)

    return ByPlace(config, log)


@pytest.fixture(scope="session")
def gemma() -> Path:
    """Gemma 3 270M as a Hugging Face folder: converted once, kept in the user's cache."""
    folder = cache_folder("tests") / "gemma-3-270m"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # several processes share the tests
        if not (folder / "provenance.json").is_file():
            fetch_model(ModelSettings(name="gemma-3-270m"), folder)
    return folder


@pytest.fixture(scope="module")  # while it is open, no other asyncio loop may run
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright  # a machine that only computes may lack it

    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs the program chromium to open the page")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = S3(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3:
    """A server with the empty bucket ``bucket``; the environment has its address, credentials and an empty cache."""
    s3_server.start()
    for name, value in (s3_server.environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    s3_server.files.mkdir("bucket")
    return s3_server


@pytest.fixture
def reconnect() -> Iterator[Callable[[], None]]:
    """Called after a change of the environment, or of s3fs: it keeps connections as they were opened."""
    forget_connections()
    yield forget_connections
    forget_connections()
