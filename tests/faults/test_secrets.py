"""Keys come from the environment and are found nowhere afterwards, whether things went well or not."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from checkout import ROOT, Checkout, Undisturbed
from features.test_descriptions import Server
from ruamel.yaml import YAML

SECRETS = {
    "OPENAI_API_KEY": "sk-sentinel-0penai",
    "HF_TOKEN": "hf_sentinelHuggingFace",
    "AWS_SECRET_ACCESS_KEY": "sentinel/aws/secret",
}


def clean(said: str, *folders: Path) -> None:
    """No secret stands in ``said``, or in the name or the bytes of any file."""
    for name, secret in SECRETS.items():
        assert secret not in said, name
        for folder in folders:
            for path in folder.rglob("*"):
                assert secret not in path.name, name
                assert not path.is_file() or secret.encode() not in path.read_bytes(), (name, path)


@pytest.fixture
def asking(few: Undisturbed) -> Checkout:
    """A checkout whose latents are described by a server."""
    checkout = few.checkout.copy("asking")
    params = YAML().load(checkout.root / "params.yaml")
    params["features"]["describe"]["explainer"] = "openai"
    params["features"]["describe"]["openai"].update(latents=3, retries=0, timeout=10.0, model="m")
    YAML().dump(params, checkout.root / "params.yaml")
    return checkout


def test_the_keys_of_a_server_are_written_nowhere(asking: Checkout) -> None:
    server = Server()
    params = YAML().load(asking.root / "params.yaml")
    params["features"]["describe"]["openai"]["url"] = server.url
    YAML().dump(params, asking.root / "params.yaml")
    environment = {"no_proxy": "127.0.0.1", **SECRETS}
    said = []
    for trouble, status in (([401], 1), ([500] * 9, 1), (["<html>"] * 9, 1), ([], 0)):
        server.misbehave = list(trouble)
        done = asking.run("features-plt", environment=tuple(environment.items()))
        assert done.status == status, done.said[-2000:]
        said.append(done.said)
    server.close()
    assert f"Bearer {SECRETS['OPENAI_API_KEY']}" in server.keys, "it was sent, so it could have leaked"
    assert "openai_" in (asking.root / "data/features/plt-1-0/metrics.json").read_text()
    clean("".join(said), asking.root, asking.cache)


class Refusing(BaseHTTPRequestHandler):
    """A Hub that refuses, repeating what it was told."""

    heard: list[str] = []  # noqa: RUF012 — of all requests

    def do_GET(self) -> None:
        self.heard.append(str(self.headers.get("authorization")))
        self.send_response(401 if len(self.heard) % 2 else 500)
        self.send_header("X-Error-Message", f"not with {self.headers.get('authorization')}")
        self.end_headers()
        self.wfile.write(f"not with {self.headers.get('authorization')}".encode())

    do_POST = do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


EXPORT = """
import sys
from transcoders import __main__ as command
sys.argv = ["transcoders", "export", "models/plt-1-0", "--to", "hub", "--repo", "me/mine"]
for attempt in range(2):
    try:
        command.main()
    except SystemExit as stopped:
        print(stopped.code, file=sys.stderr)
"""


def test_the_token_of_the_hub_is_written_nowhere(few: Undisturbed, refusing: str, tmp_path: Path) -> None:
    checkout = few.checkout.copy("exporting")
    environment = {
        **os.environ,
        **SECRETS,
        "HF_ENDPOINT": refusing,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
        "no_proxy": "127.0.0.1",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", EXPORT], cwd=checkout.root, env=environment, capture_output=True, text=True
    )
    assert done.stderr.count("error: --to hub: the Hub refused me/mine (status") == 2, done.stderr[-3000:]
    assert f"Bearer {SECRETS['HF_TOKEN']}" in Refusing.heard
    assert (checkout.root / "export/hub/plt-1-0/README.md").is_file()
    clean(done.stdout + done.stderr, checkout.root, tmp_path)
