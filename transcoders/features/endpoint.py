"""A client of OpenAI-compatible chat servers: retries, a cost cap, and no question asked twice."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx

from transcoders.core.errors import UserError
from transcoders.core.files import fingerprint, write_json
from transcoders.features.explain import NoAnswerError
from transcoders.features.settings import OpenAISettings

log = logging.getLogger(__name__)

URL, MODEL, KEY = "OPENAI_BASE_URL", "OPENAI_MODEL", "OPENAI_API_KEY"
FIRST_WAIT = 1.0
LONGEST_WAIT = 60.0
"""Seconds; the longest that a server may ask for."""
MAX_OUTPUT = 400
"""Tokens of an answer."""
Answer = TypeVar("Answer")
Messages = list[dict[str, str]]


class Endpoint:
    """Asks the model that the environment names. The key goes into the request's header and nowhere else."""

    def __init__(self, settings: OpenAISettings, cache: Path, environment: Mapping[str, str] = os.environ) -> None:
        """``cache``: the folder of earlier answers.

        Raises:
            UserError: the environment names no server or no model.
        """
        for name in (URL, MODEL):
            if not environment.get(name):
                raise UserError(
                    f"features.describe.explainer: openai needs {URL}, {MODEL} and (unless the server wants none) {KEY}"
                    f" in the environment, but {name} is not set; set it, or take explainer: statistics"
                )
        self._url = environment[URL].rstrip("/")
        self._model = environment[MODEL]
        key = environment.get(KEY)
        try:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            self._client = httpx.Client(timeout=settings.timeout, headers=headers)
            httpx.URL(f"{self._url}/chat/completions")
        except (UnicodeEncodeError, httpx.InvalidURL) as error:
            raise UserError(f"{URL} or {KEY} is not usable ({type(error).__name__}); correct it") from None
        self._settings, self._cache = settings, cache
        self._lock = threading.Lock()
        self.spent = 0.0
        """US dollars, with what the requests under way may cost at most."""
        self.asked = 0
        """Requests sent."""

    def ask(self, messages: Messages, read: Callable[[str], Answer]) -> Answer:
        """The model's answer as ``read`` understands it; from the cache, if it was asked before.

        Raises:
            UserError: the server refuses, fails ``retries`` times in a row, or the cost cap is reached.
            NoAnswerError: it answers, but ``read`` raises ValueError every time.
        """
        request = {"model": self._model, "messages": messages, "temperature": 0, "max_tokens": MAX_OUTPUT}
        file = self._cache / f"{fingerprint(self._url, request)}.json"
        if file.is_file():
            return read(json.loads(file.read_text())["answer"])
        reason, answered, wait = "", False, 0.0
        for attempt in range(self._settings.retries + 1):
            time.sleep(wait)
            wait = FIRST_WAIT * 2**attempt
            try:
                content = self._send(request)
                answered = True
                answer = read(content)
            except _FailedError as error:
                reason, wait = str(error), max(wait, error.wait)
            except ValueError as error:
                reason = str(error)
            else:
                write_json(file, {"answer": content})
                return answer
            log.debug("asking again in %g s: %s", wait, reason)
        if answered:
            raise NoAnswerError(reason)
        raise UserError(
            f"{URL}: {self._url} failed {self._settings.retries + 1} times in a row ({reason}); rerun later (what it "
            "answered is kept), raise features.describe.openai.timeout or lower features.describe.openai.concurrency"
        )

    def _send(self, request: dict[str, Any]) -> str:
        settings = self._settings
        # A token is at least about two characters of English text.
        most = self._cost(len(json.dumps(request)) / 2, MAX_OUTPUT)
        with self._lock:
            if self.spent + most > settings.max_usd:
                raise UserError(
                    f"features.describe.openai.max_usd: {settings.max_usd} USD would be exceeded after {self.asked} "
                    f"requests (about {self.spent:.4f} USD); raise it, or lower features.describe.openai.latents; "
                    "what was answered is kept, a rerun asks only for the rest"
                )
            self.spent += most
            self.asked += 1
        cost = most
        try:
            try:
                response = self._client.post(f"{self._url}/chat/completions", json=request)
            except httpx.TimeoutException:
                raise _FailedError(f"no answer within {settings.timeout:g} s") from None
            except httpx.HTTPError as error:
                cost = 0.0
                raise _FailedError(f"no connection: {type(error).__name__}") from None
            if response.status_code != 200:
                cost = 0.0
                self._refused(response)
            content, used = _parse(response)
            cost = self._cost(*used) if used else most
            return content
        finally:
            with self._lock:
                self.spent += cost - most

    def _cost(self, tokens_in: float, tokens_out: float) -> float:
        settings = self._settings
        return (tokens_in * settings.usd_per_million_input + tokens_out * settings.usd_per_million_output) / 1e6

    def _refused(self, response: httpx.Response) -> None:
        """The body is not quoted: some servers repeat the key in it."""
        status = response.status_code
        if status == 429 or status >= 500:
            raise _FailedError(f"status {status}", response.headers.get("retry-after"))
        remedy = {
            401: f"correct {KEY}",
            403: f"correct {KEY}, or choose a model that it may use ({MODEL})",
            404: f"correct {URL} (it ends in /v1, usually) or {MODEL}",
        }.get(status, f"check that the server speaks OpenAI's chat protocol and knows {MODEL}={self._model}")
        raise UserError(f"{URL}: {self._url} refuses the request with status {status}; {remedy}")


class _FailedError(Exception):
    """A request that may succeed when it is sent again, after ``wait`` seconds."""

    def __init__(self, reason: str, retry_after: str | None = None) -> None:
        super().__init__(reason)
        self.wait = min(float(retry_after), LONGEST_WAIT) if retry_after and retry_after.isdecimal() else 0.0


def _parse(response: httpx.Response) -> tuple[str, tuple[float, float] | None]:
    """Content and token counts of a completion."""
    try:
        body = response.json()
        message = body["choices"][0]["message"]
        usage = body.get("usage")
        used = (float(usage["prompt_tokens"]), float(usage["completion_tokens"])) if usage else None
        content = message["content"]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise _FailedError("its answer is not JSON of the chat protocol") from None
    return (content if isinstance(content, str) else ""), used
