"""A client of OpenAI-compatible chat servers with a cap on the cost, for which no question is asked twice."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import openai

from transcoders.core.errors import DAMAGE, UserError
from transcoders.core.files import fingerprint, write_json
from transcoders.features.explain import NoAnswerError
from transcoders.features.settings import OpenAISettings

log = logging.getLogger(__name__)
KEY = "OPENAI_API_KEY"
HEADERS = "OPENAI_CUSTOM_HEADERS"
"""The one variable that the client reads although all that it may be given is given."""
URL_KEY, MODEL_KEY = "features.describe.openai.url", "features.describe.openai.model"
FIRST_WAIT = 1.0
LONGEST_WAIT = 60.0
"""Seconds; the longest that a server may ask for."""
MAX_OUTPUT = 400
"""Tokens of an answer."""
Answer = TypeVar("Answer")
Messages = list[dict[str, str]]


class Endpoint:
    """Ask a model on a server. The key goes into the request's header and nowhere else."""

    def __init__(self, settings: OpenAISettings, cache: Path, environment: Mapping[str, str] = os.environ) -> None:
        """Prepare questions; ``cache`` is the folder of earlier answers, and the key is in ``environment``.

        Raises:
            UserError: the settings name no server or no model, or one of them or the key is unusable.
        """
        for name, value in ((URL_KEY, settings.url), (MODEL_KEY, settings.model)):
            if not value:
                raise UserError(
                    f"features.describe.explainer: openai needs {URL_KEY}, {MODEL_KEY} and (unless the server wants "
                    f"none) {KEY} in the environment, but {name} is not set; set it, or take explainer: statistics"
                )
        if environment.get(HEADERS):
            raise UserError(
                f"{HEADERS}: is set, and would decide what is asked without a parameter that says so; unset it"
            )
        self._settings, self._cache = settings, cache
        key = environment.get(KEY) or "none"  # the client insists on one
        if not key.isascii():
            raise UserError(f"{KEY} is not usable (it is not ASCII); correct it")
        try:
            self._client = openai.OpenAI(
                base_url=settings.url, api_key=key, timeout=settings.timeout, max_retries=0, organization="", project=""
            )
        except Exception as error:  # the client passes on whatever its parser of URLs raises
            raise UserError(f"{URL_KEY}: {settings.url} is not usable ({type(error).__name__}); correct it") from None
        self._lock = threading.Lock()
        self.spent = 0.0
        """US dollars, with what the requests under way may cost at most."""
        self.asked = 0
        """Requests sent."""

    def ask(self, messages: Messages, read: Callable[[str], Answer]) -> Answer:
        """Return the model's answer as ``read`` understands it; from the cache, if it was asked before.

        Raises:
            UserError: the server refuses, fails ``retries`` times in a row, or the cost cap is reached.
            NoAnswerError: it answers, but ``read`` raises ValueError every time.
        """
        request = {"model": self._settings.model, "messages": messages, "temperature": 0, "max_tokens": MAX_OUTPUT}
        url = str(self._settings.url).rstrip("/")
        file = self._cache / f"{fingerprint(url, request)}.json"
        if file.is_file():
            with suppress(*DAMAGE):  # what cannot be read (any more) is asked again
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
            f"{URL_KEY}: {url} failed {self._settings.retries + 1} times in a row ({reason}); rerun later (what it "
            "answered is kept), raise features.describe.openai.timeout or lower features.describe.openai.concurrency"
        )

    def _send(self, request: dict[str, Any]) -> str:
        # A token is at least about two characters of English text.
        most = self._cost(len(json.dumps(request)) / 2, MAX_OUTPUT)
        self._reserve(most)
        cost = most
        try:
            completion = self._client.chat.completions.create(**request)
            content, used = _parse(completion)
            cost = self._cost(*used) if used else most
            return content
        except openai.APITimeoutError:
            raise _FailedError(f"no answer within {self._settings.timeout:g} s") from None
        except openai.APIConnectionError as error:
            cost = 0.0
            raise _FailedError(f"no connection: {type(error.__cause__ or error).__name__}") from None
        except openai.APIStatusError as error:
            cost = 0.0
            raise self._refusal(error) from None
        except (openai.APIError, json.JSONDecodeError):
            raise _FailedError("its answer is not JSON of the chat protocol") from None
        finally:
            with self._lock:
                self.spent += cost - most

    def _reserve(self, most: float) -> None:
        """Count a request that may cost ``most``, unless that would pass the cap."""
        with self._lock:
            if self.spent + most > self._settings.max_usd:
                raise UserError(
                    f"features.describe.openai.max_usd: {self._settings.max_usd} USD would be exceeded after "
                    f"{self.asked} requests (about {self.spent:.4f} USD); raise it, or lower "
                    "features.describe.openai.latents; what was answered is kept, a rerun asks only for the rest"
                )
            self.spent += most
            self.asked += 1

    def _cost(self, tokens_in: float, tokens_out: float) -> float:
        settings = self._settings
        return (tokens_in * settings.usd_per_million_input + tokens_out * settings.usd_per_million_output) / 1e6

    def _refusal(self, error: openai.APIStatusError) -> Exception:
        """Say what a status means. The body is not quoted: some servers repeat the key in it."""
        status = error.status_code
        if status == 429 or status >= 500:
            return _FailedError(f"status {status}", error.response.headers.get("retry-after"))
        remedy = {
            401: f"correct {KEY}",
            403: f"correct {KEY}, or choose a model that it may use ({MODEL_KEY})",
            404: f"correct {URL_KEY} (it ends in /v1, usually) or {MODEL_KEY}",
        }.get(
            status, f"check that the server speaks OpenAI's chat protocol and knows {MODEL_KEY}={self._settings.model}"
        )
        return UserError(f"{URL_KEY}: {self._settings.url} refuses the request with status {status}; {remedy}")


class _FailedError(Exception):
    """Tell that a request may succeed when it is sent again, after ``wait`` seconds."""

    def __init__(self, reason: str, retry_after: str | None = None) -> None:
        super().__init__(reason)
        self.wait = min(float(retry_after), LONGEST_WAIT) if retry_after and retry_after.isdecimal() else 0.0


def _parse(completion: Any) -> tuple[str, tuple[float, float] | None]:
    """Return the content and the token counts of a completion, which the client does not check."""
    try:
        content = completion.choices[0].message.content
        usage = completion.usage
        used = (float(usage.prompt_tokens), float(usage.completion_tokens)) if usage else None
    except (IndexError, TypeError, AttributeError):
        raise _FailedError("its answer is not JSON of the chat protocol") from None
    return (content if isinstance(content, str) else ""), used
