"""Descriptions of latents whose meaning is known: by counting, and by a server that speaks OpenAI's protocol."""

import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import openai
import pytest

from transcoders.core.errors import UserError
from transcoders.features.describe import describe
from transcoders.features.endpoint import Endpoint
from transcoders.features.explain import Contexts, Evidence, NoAnswerError
from transcoders.features.openai import OpenAI
from transcoders.features.scores import Unseen, detection_score, fuzzing_score, histogram, summary
from transcoders.features.settings import DescribeSettings, OpenAISettings
from transcoders.features.statistics import Statistics
from transcoders.features.tables import summaries
from transcoders.features.texts import PAD, Texts
from transcoders.features.vocabulary import Vocabulary

WINDOW = 8
NAMES = [*(f" filler{i}" for i in range(30)), " Volcano", " crater", " sea", *(f" volcano{i}x" for i in range(12))]
FILLER = np.arange(30)
VOLCANO, CRATER, SEA = 30, 31, 32
PLANTED = 33
"""The first of the words that latents of the server's tests fire on."""
KEY = "sk-a-secret-of-the-test"
SETTINGS = DescribeSettings()
TEXTS = Texts(None)
TEXTS.known = dict(enumerate(NAMES))


def text(rng: np.random.Generator, windows: int, *, holding: int | None = None) -> np.ndarray:
    tokens = rng.choice(FILLER, (windows, WINDOW)).astype(np.int32)
    if holding is not None:
        tokens[np.arange(windows), rng.integers(WINDOW, size=windows)] = holding
    return tokens


def evidence_of(contexts: Contexts) -> Evidence:
    return Evidence(0, 0.01, Contexts(*(part[:10] for part in contexts)), contexts, [" promoted"])


def planted(rng: np.random.Generator, token: int) -> tuple[Evidence, Unseen]:
    """A latent that fires on one word, wherever it stands."""
    shown, active = text(rng, 40, holding=token), text(rng, 10, holding=token)
    contexts = Contexts(shown, (shown == token).astype(np.float32))
    return evidence_of(contexts), Unseen(active, text(rng, 10), active == token)


def random_firings(rng: np.random.Generator) -> tuple[Evidence, Unseen]:
    """A latent that fires anywhere."""
    somewhere = np.eye(WINDOW, dtype=np.float32)
    contexts = Contexts(text(rng, 40), somewhere[rng.integers(WINDOW, size=40)])
    unseen = Unseen(text(rng, 20), text(rng, 20), somewhere[rng.integers(WINDOW, size=20)] > 0)
    return evidence_of(contexts), unseen


def statistics() -> Statistics:
    """Made of a text of filler; “volcano” and “crater” are alike to the language model."""
    rng = np.random.default_rng(9)
    points = rng.standard_normal((PLANTED, 16)).astype(np.float32)
    points[CRATER] = points[VOLCANO] + 0.1 * points[CRATER]
    windows = np.array([*(1000 * WINDOW / len(FILLER) for _ in FILLER), 80, 20, 20])
    return Statistics(Vocabulary(dict(enumerate(NAMES[:PLANTED])), points, windows), text(rng, 150))


def test_a_word_is_found_named_and_predicts_unseen_text() -> None:
    evidence, unseen = planted(np.random.default_rng(0), VOLCANO)
    (described,) = describe(statistics(), [evidence], [unseen])
    assert described.score == described.fuzzing == 1
    assert described.description is not None
    assert described.description.text.startswith("fires on “volcano” (100%)")
    assert "promotes “promoted”" in described.description.text


def test_words_that_the_model_takes_for_alike_are_predicted_too_and_others_are_not() -> None:
    evidence, _ = planted(np.random.default_rng(0), VOLCANO)
    explainer = statistics()
    description = explainer.describe(evidence)
    windows = np.stack([np.array([*FILLER[: WINDOW - 1], token]) for token in (VOLCANO, CRATER, SEA, FILLER[9])])
    last, first = (np.arange(WINDOW) == place for place in (WINDOW - 1, 0))
    assert explainer.detect(description, windows) == [True, True, False, False]
    assert explainer.recognise(description, windows, np.stack([last] * 4)) == [True, True, False, False]
    assert explainer.recognise(description, windows, np.stack([first] * 4)) == [False] * 4


def test_what_comes_before_a_firing_is_named_and_tells_it_from_others() -> None:
    shown, values = text(np.random.default_rng(0), 40), np.zeros((40, WINDOW), np.float32)
    shown[:, 3], values[:, 4] = VOLCANO, 1
    explainer = statistics()
    description = explainer.describe(evidence_of(Contexts(shown, values)))
    assert "after “volcano”" in description.text
    after = np.array([FILLER[0], VOLCANO, FILLER[1], *FILLER[2 : WINDOW - 1]])
    marked = np.arange(WINDOW) == np.array([[2], [5]])
    assert explainer.recognise(description, np.stack([after, after]), marked) == [True, False]


def test_padding_says_nothing() -> None:
    """A window that begins with a document is filled up at its left, and one that ends with it at its right."""
    evidence, unseen = planted(np.random.default_rng(0), VOLCANO)
    explainer, wider = statistics(), ((0, 0), (2, 3))
    shown, values = evidence.sampled
    padded = Contexts(np.pad(shown, wider, constant_values=PAD), np.pad(values, wider))
    plain, other = explainer.describe(evidence), explainer.describe(evidence._replace(sampled=padded))
    assert other.text == plain.text
    np.testing.assert_allclose(other.directions.means, plain.directions.means, atol=1e-6)
    windows = np.pad(unseen.active, wider, constant_values=PAD)
    assert explainer.detect(plain, windows) == explainer.detect(plain, unseen.active)


@pytest.mark.parametrize("usual", [0, 150])
def test_a_latent_that_fires_on_held_out_text_alone_is_described_by_what_it_promotes(usual: int) -> None:
    """Nothing of it may be shown, and its descriptions predict nothing; texts of very short documents are unusual."""
    evidence, unseen = planted(np.random.default_rng(0), VOLCANO)
    explainer = statistics()
    explainer = Statistics(explainer._vocabulary, text(np.random.default_rng(1), usual))
    nothing = Contexts(*(part[:0] for part in evidence.sampled))
    (described,) = describe(explainer, [evidence._replace(top=nothing, sampled=nothing)], [unseen])
    assert described.description is not None
    assert described.description.text == "fires on held-out text alone; promotes “promoted”"
    assert described.score == described.fuzzing == 0.5


def test_firings_without_a_rule_score_at_chance() -> None:
    rng = np.random.default_rng(0)
    pairs = [random_firings(rng) for _ in range(60)]
    described = describe(statistics(), *map(list, zip(*pairs, strict=True)))
    metrics = summaries(described, SETTINGS)
    for kind in ("detection", "fuzzing"):
        assert metrics[f"{kind}_score"] == pytest.approx(0.5, abs=0.04)
        assert metrics[f"{kind}_score_low"] < metrics[f"{kind}_score"] < metrics[f"{kind}_score_high"]


def test_too_little_text_gives_no_score() -> None:
    evidence, unseen = planted(np.random.default_rng(0), VOLCANO)
    description = statistics().describe(evidence)
    few = Unseen(*(part[:3] for part in unseen))
    assert detection_score(statistics(), description, few) is None
    assert fuzzing_score(statistics(), description, few) is None
    everywhere = unseen._replace(fired=np.ones_like(unseen.fired))
    assert fuzzing_score(statistics(), description, everywhere) is None
    assert summary(np.array([np.nan]), SETTINGS) == {"detection_scored": 0.0}
    assert histogram(np.array([np.nan, 0.5, 1.0]))["latents"].sum() == 2


class Server:
    """Speaks OpenAI's chat protocol over HTTP: finds the marked word, and where it occurs."""

    def __init__(self) -> None:
        self.requests: list[dict] = []
        self.keys: list[str | None] = []
        self.headers: list[dict[str, str]] = []
        self.misbehave: list[object] = []
        """What to answer first: a status, a body, or seconds to wait."""
        self.at_once = self.most_at_once = 0
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    outer.requests.append(request)
                    outer.keys.append(self.headers.get("authorization"))
                    outer.headers.append(dict(self.headers))
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                    trick = outer.misbehave.pop(0) if outer.misbehave else None
                time.sleep(trick if isinstance(trick, float) else 0.02)
                status = trick if isinstance(trick, int) else 200
                body = trick if isinstance(trick, str) else json.dumps(outer.answer(request))
                with lock:
                    outer.at_once -= 1
                if self.path != "/v1/chat/completions":
                    status = 404
                self.send_response(status)
                if status == 429:
                    self.send_header("retry-after", "0")
                self.end_headers()
                # A server that repeats the key in its complaint.
                self.wfile.write((body if status == 200 else f"bad key {self.headers.get('authorization')}").encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @staticmethod
    def answer(request: dict) -> dict:
        system, user = (message["content"] for message in request["messages"])
        if "promotes" in system:
            marked = user.split("«")[1].split("»")[0].strip()
            content = "```json\n" + json.dumps({"description": f"the word {marked}\non one line"}) + "\n```"
        else:
            name = user.split("the word ")[1].split()[0]
            excerpts = user.split("excerpts:\n")[1].split("\n")
            wanted = f"« {name}»" if "marked tokens" in system else name
            content = json.dumps({"active": [int(wanted.lower() in line.lower()) for line in excerpts]})
        return {
            "choices": [{"message": {"role": "assistant", "content": content}}],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 100},
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transcoders.features.endpoint.FIRST_WAIT", 0.01)


def endpoint(server: Server, cache: Path, **changes: object) -> Endpoint:
    settings = OpenAISettings(**{"url": server.url, "model": "a-model", "timeout": 5.0, "retries": 2, **changes})
    return Endpoint(settings, cache, {"OPENAI_API_KEY": KEY})


def pairs(count: int) -> tuple[list[Evidence], list[Unseen]]:
    rng = np.random.default_rng(0)
    made = [planted(rng, PLANTED + i) for i in range(count)]
    return [evidence for evidence, _ in made], [unseen for _, unseen in made]


def test_a_server_describes_and_predicts_and_is_never_asked_twice(server: Server, tmp_path: Path) -> None:
    described = describe(OpenAI(endpoint(server, tmp_path), TEXTS, 4), *pairs(12))
    assert [d.score for d in described] == [d.fuzzing for d in described] == [1.0] * 12
    assert described[3].description is not None
    assert described[3].description.text == "the word volcano3x on one line"
    assert len(server.requests) == 36
    assert 1 < server.most_at_once <= 4
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert all(request["model"] == "a-model" for request in server.requests)

    assert describe(OpenAI(endpoint(server, tmp_path), TEXTS, 4), *pairs(12)) == described
    assert len(server.requests) == 36


def test_the_key_is_written_nowhere(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.misbehave = [500]
    describe(OpenAI(endpoint(server, tmp_path), TEXTS, 1), *pairs(1))
    server.misbehave = [401]
    with pytest.raises(UserError, match="refuses the request with status 401; correct OPENAI_API_KEY") as caught:
        describe(OpenAI(endpoint(server, tmp_path / "other"), TEXTS, 1), *pairs(1))
    assert KEY not in str(caught.value) + caplog.text
    assert not any(KEY in file.read_text() for file in tmp_path.rglob("*.json"))


def test_half_a_surrogate_pair_in_an_answer_stops_nothing(server: Server, tmp_path: Path) -> None:
    """No table and no page could hold it; what an earlier version put into the cache is read the same way."""
    half = json.dumps({"description": "half an emoji: \ud83d"})
    for content in (half, half.replace("\\ud83d", "\ud83d")):
        server.misbehave = [json.dumps({"choices": [{"message": {"content": content}}]})]
        cache = tmp_path / str(len(server.requests))
        for _ in range(2):  # from the server, then from the cache
            description = OpenAI(endpoint(server, cache), TEXTS, 1).describe(pairs(1)[0][0])
            assert description.text == "half an emoji: ?"
    assert len(server.requests) == 2


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"answer": 3}', '{"answer": "not the answer"}'])
def test_an_answer_in_the_cache_that_cannot_be_read_is_asked_for_again(
    server: Server, tmp_path: Path, content: str
) -> None:
    explainer, evidence = OpenAI(endpoint(server, tmp_path), TEXTS, 1), pairs(1)[0][0]
    first = explainer.describe(evidence)
    (file,) = tmp_path.glob("*.json")
    file.write_text(content)
    assert explainer.describe(evidence) == first
    assert len(server.requests) == 2


def test_no_variable_but_the_key_decides_what_is_asked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(openai.__file__).parent
    text = "".join(file.read_text() for folder in (source, source / "lib") for file in folder.glob("*.py"))
    variables = set(re.findall(r"\bOPENAI_[A-Z_]+\b", text)) - {"OPENAI_API_KEY", "OPENAI_CUSTOM_HEADERS"}
    assert {"OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"} <= variables
    OpenAI(endpoint(server, tmp_path / "a"), TEXTS, 1).describe(pairs(1)[0][0])
    for name in variables:
        monkeypatch.setenv(name, "http://127.0.0.1:1/elsewhere")
    monkeypatch.setenv("OPENAI_API_KEY", "another-key")
    OpenAI(endpoint(server, tmp_path / "b"), TEXTS, 1).describe(pairs(1)[0][0])
    assert server.requests[0] == server.requests[1]
    assert server.headers[0] == server.headers[1]


def test_headers_from_the_environment_are_refused(server: Server, tmp_path: Path) -> None:
    settings = OpenAISettings(url=server.url, model="m")
    with pytest.raises(UserError, match=r"^OPENAI_CUSTOM_HEADERS: is set.*; unset it$") as caught:
        Endpoint(settings, tmp_path, {"OPENAI_CUSTOM_HEADERS": "x-model: another\nx-token: secret"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "trouble",
    [[429], [500, 503], [1.0], ["not json"], ['{"choices": []}'], ['{"choices": [{"message": {"content": null}}]}']],
)
def test_passing_trouble_is_tried_again(server: Server, tmp_path: Path, trouble: list[object]) -> None:
    server.misbehave = list(trouble)
    (described,) = describe(OpenAI(endpoint(server, tmp_path, timeout=0.5), TEXTS, 1), *pairs(1))
    assert described.score == 1.0
    assert len(server.requests) == 3 + len(trouble)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ([500] * 9, r"failed 3 times in a row \(status 500\); rerun later"),
        ([0.5] * 9, r"failed 3 times in a row \(no answer within 0.2 s\).*timeout"),
        (["<html>"] * 9, r"failed 3 times in a row \(its answer is not JSON"),
        ([403], "status 403.*openai.model"),
        ([404], "status 404.*/v1"),
    ],
)
def test_lasting_trouble_ends_in_one_line_with_the_remedy(
    server: Server, tmp_path: Path, trouble: list[object], message: str
) -> None:
    server.misbehave = list(trouble)
    with pytest.raises(UserError, match=message) as caught:
        describe(OpenAI(endpoint(server, tmp_path, timeout=0.2), TEXTS, 1), *pairs(1))
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    gone = Server()
    gone.close()
    with pytest.raises(UserError, match=rf"{gone.url} failed 3 times in a row \(no connection"):
        describe(OpenAI(endpoint(gone, tmp_path), TEXTS, 1), *pairs(1))


def test_an_answer_that_says_nothing_leaves_the_latent_without_description(server: Server, tmp_path: Path) -> None:
    empty = json.dumps({"choices": [{"message": {"content": "I would rather not say."}}]})
    server.misbehave = [empty] * 3
    assert [
        described.description for described in describe(OpenAI(endpoint(server, tmp_path), TEXTS, 1), *pairs(1))
    ] == [None]
    server.misbehave = [empty] * 3
    explainer = OpenAI(endpoint(server, tmp_path), TEXTS, 1)
    with pytest.raises(NoAnswerError):
        explainer.describe(pairs(1)[0][0])


def test_the_cost_cap_stops_before_it_is_passed_and_a_rerun_asks_for_the_rest(server: Server, tmp_path: Path) -> None:
    # A request costs 0.0011 USD by the server's count, and at most about 0.0014 by what was sent.
    prices = {"usd_per_million_input": 1.0, "usd_per_million_output": 1.0}
    with pytest.raises(UserError, match=r"max_usd: 0.005 USD would be exceeded after \d+ requests.*rerun") as caught:
        describe(OpenAI(endpoint(server, tmp_path, max_usd=0.005, **prices), TEXTS, 2), *pairs(6))
    assert "\n" not in str(caught.value)
    asked = len(server.requests)
    assert 1 <= asked <= 4
    described = describe(OpenAI(endpoint(server, tmp_path, max_usd=1.0, **prices), TEXTS, 2), *pairs(6))
    assert [d.score for d in described] == [1.0] * 6
    assert len(server.requests) == 18


@pytest.mark.parametrize("missing", ["url", "model"])
def test_settings_that_name_no_server_are_refused_at_once(tmp_path: Path, missing: str) -> None:
    settings = OpenAISettings(**{"url": "http://localhost/v1", "model": "m", missing: None})
    with pytest.raises(UserError, match=f"openai.{missing} is not set; set it, or take explainer: statistics"):
        Endpoint(settings, tmp_path, {})
