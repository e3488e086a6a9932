"""moto's S3 server over HTTP, as tests use it."""

from pathlib import Path
from typing import Any

import fsspec
import httpx

KEY, SECRET = "AKIAKEYOFTESTS", "secret-of-tests"


class S3:
    """A server with the empty bucket ``bucket``."""

    def __init__(self, home: Path) -> None:
        self._server: Any = None
        none = str(home / "none")
        self.environment = {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": none,
            "AWS_SHARED_CREDENTIALS_FILE": none,
            "no_proxy": "127.0.0.1",
            "NO_PROXY": "127.0.0.1",
        }

    def start(self) -> None:
        """Begin anew: no files, everybody let in. ``environment`` then has the address."""
        if self._server is None:
            from moto.server import ThreadedMotoServer  # seconds, which only tests that use it should take

            self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
            self._server.start()
            self.environment["AWS_ENDPOINT_URL"] = "http://{}:{}".format(*self._server.get_host_and_port())
            forget_connections()
        self._post("reset-auth", "inf")
        self._post("reset")

    def _post(self, action: str, content: str | None = None) -> None:
        url = f"{self.environment['AWS_ENDPOINT_URL']}/moto-api/{action}"
        httpx.post(url, content=content, trust_env=False).raise_for_status()

    @property
    def files(self) -> Any:
        """The server as a file system, with nothing remembered."""
        file_system = fsspec.filesystem("s3")
        file_system.invalidate_cache()
        return file_system

    def check_credentials(self) -> None:
        """From now on nobody is let in: there are no users."""
        self._post("reset-auth", "0")

    def stop(self) -> None:
        """From now on there is no answer."""
        if self._server is not None:
            self._server.stop()
        self._server = None


def forget_connections() -> None:
    """fsspec keeps file systems, with the credentials that they began with."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
