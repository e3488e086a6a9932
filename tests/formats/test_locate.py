"""The Hub's answers, given by a server on this machine."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import formats_support as foreign
import pytest
import torch
from formats_support import D, expected, raw

from transcoders import load
from transcoders.core.errors import UserError
from transcoders.formats.locate import is_hub_reference

FOLDER = "transcoder_all/layer_9_width_16k_l0_small"
LOAD = """
import sys
from transcoders import UserError, load
try:
    print(float(load(sys.argv[1])(__import__("torch").ones(1, 12)).sum()))
except UserError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a download needs: a repository that answers, one that is gated, one that breaks off."""

    files: dict[str, bytes] = {}  # noqa: RUF012 — set by the fixture

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        if "gated" in path:
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        if "absent" in path:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if path.startswith("/api/models/"):
            files = [{"rfilename": name} for name in self.files]
            info = {"id": "o/r", "_id": "1", "sha": COMMIT, "private": False, "siblings": files, "tags": []}
            tree = [{"type": "file", "path": n, "size": len(c), "oid": "b" * 40} for n, c in self.files.items()]
            return self._send(200, json.dumps(tree if "/tree/" in path else info).encode(), {})
        name = path.partition(f"/{COMMIT}/")[2]
        if name not in self.files:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        content = self.files[name]
        broken = "broken" in path and self.command == "GET"
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return self._send(200, content, headers, cut=len(content) // 2 if broken else None)

    def _send(self, status, content, headers, cut=None):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:cut])


@pytest.fixture
def hub(tmp_path):
    """``load(reference)`` in a process of its own, whose Hub is a server here."""
    t = raw()
    folder = foreign.gemma_scope_2(tmp_path, t)
    Hub.files = {f"{FOLDER}/{file.name}": file.read_bytes() for file in folder.iterdir()}
    Hub.files[f"{FOLDER}/weights.pt"] = b"never fetched"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def load(reference, **environment):
        env = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "no_proxy": "127.0.0.1",
        }
        return subprocess.run(
            [sys.executable, "-c", LOAD, reference], env=env | environment, capture_output=True, text=True, check=False
        )

    load.expected = float(expected(t, torch.ones(1, D)).sum())
    load.stop = server.shutdown
    load.cache = tmp_path / "home"
    yield load
    server.shutdown()


def test_a_folder_on_the_hub_is_loaded_and_from_the_cache_without_it(hub):
    done = hub(f"google/gemma-scope-2-270m-pt:{FOLDER}")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(hub.expected, rel=1e-5)
    assert not list(hub.cache.rglob("*.pt"))
    again = hub(f"google/gemma-scope-2-270m-pt:{FOLDER}/", HF_HUB_OFFLINE="1")
    assert again.stdout == done.stdout, again.stderr


@pytest.mark.parametrize(
    ("reference", "environment", "message"),
    [
        (f"google/gated:{FOLDER}", {}, "UserError: .* accept its terms at https://huggingface.co/google/gated, then"),
        (f"google/absent:{FOLDER}", {}, "UserError: .* no repository 'google/absent'"),
        ("google/there:elsewhere", {}, "UserError: .*holds none of params.npz"),
        (f"google/broken:{FOLDER}", {}, "HubUnreachableError: .*the download did not finish .*continue"),
        (f"google/there:{FOLDER}", {"HF_HUB_OFFLINE": "1"}, "HubUnreachableError: .*cannot be reached"),
        (f"google/there:{FOLDER}", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "HubUnreachableError: .*cannot be reached"),
    ],
)
def test_what_went_wrong_is_one_line(hub, reference, environment, message):
    done = hub(reference, **environment)
    assert done.returncode == 1
    assert re.match(message, done.stderr.splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stderr


UPLOAD = """
import sys
from transcoders.core.errors import UserError
from transcoders.formats.hub import upload
try:
    upload(sys.argv[1], sys.argv[2])
except UserError as error:
    sys.exit(f"UserError: {error}")
"""


@pytest.mark.parametrize(
    ("repo", "environment", "message"),
    [
        ("mine", {"HF_TOKEN": ""}, "nobody is logged in; run `hf auth login`"),
        ("mine", {"HF_TOKEN": "hf_x", "HF_ENDPOINT": "http://127.0.0.1:9"}, "could not be uploaded .*is there a conn"),
        ("me/mine", {"HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "1"}, "could not be uploaded .*is there a connection"),
        ("me/my/own", {"HF_TOKEN": "hf_x"}, "--repo me/my/own: Repo id must"),
    ],
)
def test_what_went_wrong_with_an_upload_is_one_line(tmp_path, repo, environment, message):
    env = os.environ | {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", UPLOAD, tmp_path, repo],
        env=env | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.match(f"UserError: .*{message}", done.stderr.splitlines()[-1]), done.stderr


def test_what_is_a_reference_to_the_hub():
    assert is_hub_reference("google/gemma-scope-2-270m-pt:transcoder_all/layer_9")
    assert is_hub_reference("me/mine:")
    for path in ("models/topk-9-0", "./a/b:c", "/a/b:c", "a:b", "a/b/c:d", "a/b:../c"):
        assert not is_hub_reference(path)
    with pytest.raises(UserError, match="no such file or folder"):
        load("a:b")
