"""Descriptions of latents whose meaning is known: by counting, and by a server that speaks OpenAI's protocol."""

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import openai
import pytest

from transcoders.core.errors import UserError
from transcoders.features.describe import describe
from transcoders.features.endpoint import Endpoint
from transcoders.features.explain import Context, Evidence, NoAnswerError
from transcoders.features.openai import OpenAI
from transcoders.features.scores import Unseen, detection_score, fuzzing_score, histogram, summary
from transcoders.features.settings import DescribeSettings, OpenAISettings
from transcoders.features.statistics import Statistics, word
from transcoders.features.tables import summaries
from transcoders.features.vocabulary import Vocabulary

WINDOW, FILLER = 8, [f" filler{i}" for i in range(30)]
KEY = "sk-a-secret-of-the-test"
SETTINGS = DescribeSettings()


def text(rng: np.random.Generator, *, holding: str | None = None) -> list[str]:
    tokens = list(rng.choice(FILLER, WINDOW))
    if holding:
        tokens[rng.integers(WINDOW)] = holding
    return tokens


def unseen(rng: np.random.Generator, active: list[list[str]], fired: Callable[[list[str]], list[int]]) -> Unseen:
    return Unseen(active, [text(rng) for _ in active], [fired(tokens) for tokens in active])


def planted(rng: np.random.Generator, name: str) -> tuple[Evidence, Unseen]:
    """A latent that fires on one word, wherever it stands."""
    windows = [text(rng, holding=name) for _ in range(40)]
    contexts = [Context(tokens, [float(token == name) for token in tokens]) for tokens in windows]
    return (
        Evidence(0, 0.01, contexts[:10], contexts, [" promoted"]),
        unseen(rng, [text(rng, holding=name) for _ in range(10)], lambda tokens: [tokens.index(name)]),
    )


def random_firings(rng: np.random.Generator) -> tuple[Evidence, Unseen]:
    """A latent that fires anywhere."""
    windows = [text(rng) for _ in range(40)]
    contexts = [Context(tokens, np.eye(WINDOW)[rng.integers(WINDOW)].tolist()) for tokens in windows]
    return (
        Evidence(1, 0.05, contexts[:10], contexts, [" promoted"]),
        unseen(rng, [text(rng) for _ in range(20)], lambda _: [int(rng.integers(WINDOW))]),
    )


def statistics() -> Statistics:
    """Made of a text of filler; “volcano” and “crater” are alike to the language model."""
    rng = np.random.default_rng(9)
    tokens = [*FILLER, " Volcano", " crater", " sea"]
    points = rng.standard_normal((len(tokens), 16)).astype(np.float32)
    points[-2] = points[-3] + 0.1 * points[-2]
    counts = np.array([*(1000 * WINDOW / len(FILLER) for _ in FILLER), 80, 20, 20])
    usual = [text(rng) for _ in range(150)]
    return Statistics(Vocabulary(tokens, points, counts), usual, {word(name): 250 for name in FILLER} | {"volcano": 80})


def test_a_word_is_found_named_and_predicts_unseen_text() -> None:
    evidence, unseen = planted(np.random.default_rng(0), " Volcano")
    (described,) = describe(statistics(), [evidence], [unseen])
    assert described.score == described.fuzzing == 1
    assert described.description is not None
    assert described.description.text.startswith("fires on “volcano” (100%)")
    assert "promotes “promoted”" in described.description.text


def test_words_that_the_model_takes_for_alike_are_predicted_too_and_others_are_not() -> None:
    evidence, _ = planted(np.random.default_rng(0), " Volcano")
    explainer = statistics()
    description = explainer.describe(evidence)
    windows = [[*FILLER[: WINDOW - 1], name] for name in (" Volcano", " crater", " sea", FILLER[9])]
    assert explainer.detect(description, windows) == [True, True, False, False]
    assert explainer.recognise(description, windows, [[WINDOW - 1]] * 4) == [True, True, False, False]
    assert explainer.recognise(description, windows, [[0]] * 4) == [False] * 4


def test_what_comes_before_a_firing_is_named_and_tells_it_from_others() -> None:
    rng = np.random.default_rng(0)
    shown = []
    for _ in range(40):
        tokens = list(rng.choice(FILLER, WINDOW))
        tokens[3] = " Volcano"
        shown.append(Context(tokens, [0.0] * 4 + [1.0] + [0.0] * (WINDOW - 5)))
    explainer = statistics()
    description = explainer.describe(Evidence(0, 0.01, shown[:10], shown, []))
    assert "after “volcano”" in description.text
    after = [FILLER[0], " Volcano", FILLER[1], *FILLER[2 : WINDOW - 1]]
    assert explainer.recognise(description, [after, after], [[2], [5]]) == [True, False]


def test_firings_without_a_rule_score_at_chance() -> None:
    rng = np.random.default_rng(0)
    pairs = [random_firings(rng) for _ in range(60)]
    described = describe(statistics(), *map(list, zip(*pairs, strict=True)))
    metrics = summaries(described, SETTINGS)
    for kind in ("detection", "fuzzing"):
        assert metrics[f"{kind}_score"] == pytest.approx(0.5, abs=0.04)
        assert metrics[f"{kind}_score_low"] < metrics[f"{kind}_score"] < metrics[f"{kind}_score_high"]


def test_too_little_text_gives_no_score() -> None:
    evidence, unseen = planted(np.random.default_rng(0), " volcano")
    description = statistics().describe(evidence)
    few = Unseen(unseen.active[:3], unseen.silent[:3], unseen.fired[:3])
    assert detection_score(statistics(), description, few) is None
    assert fuzzing_score(statistics(), description, few) is None
    everywhere = unseen._replace(fired=[list(range(WINDOW))] * len(unseen.active))
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
    made = [planted(rng, f" volcano{i}x") for i in range(count)]
    return [evidence for evidence, _ in made], [unseen for _, unseen in made]


def test_a_server_describes_and_predicts_and_is_never_asked_twice(server: Server, tmp_path: Path) -> None:
    described = describe(OpenAI(endpoint(server, tmp_path), 4), *pairs(12))
    assert [d.score for d in described] == [d.fuzzing for d in described] == [1.0] * 12
    assert described[3].description is not None
    assert described[3].description.text == "the word volcano3x on one line"
    assert len(server.requests) == 36
    assert 1 < server.most_at_once <= 4
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert all(request["model"] == "a-model" for request in server.requests)

    assert describe(OpenAI(endpoint(server, tmp_path), 4), *pairs(12)) == described
    assert len(server.requests) == 36


def test_the_key_is_written_nowhere(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.misbehave = [500]
    describe(OpenAI(endpoint(server, tmp_path), 1), *pairs(1))
    server.misbehave = [401]
    with pytest.raises(UserError, match="refuses the request with status 401; correct OPENAI_API_KEY") as caught:
        describe(OpenAI(endpoint(server, tmp_path / "other"), 1), *pairs(1))
    assert KEY not in str(caught.value) + caplog.text
    assert not any(KEY in file.read_text() for file in tmp_path.rglob("*.json"))


def test_half_a_surrogate_pair_in_an_answer_stops_nothing(server: Server, tmp_path: Path) -> None:
    """No table and no page could hold it; what an earlier version put into the cache is read the same way."""
    half = json.dumps({"description": "half an emoji: \ud83d"})
    for content in (half, half.replace("\\ud83d", "\ud83d")):
        server.misbehave = [json.dumps({"choices": [{"message": {"content": content}}]})]
        cache = tmp_path / str(len(server.requests))
        for _ in range(2):  # from the server, then from the cache
            description = OpenAI(endpoint(server, cache), 1).describe(pairs(1)[0][0])
            assert description.text == "half an emoji: ?"
    assert len(server.requests) == 2


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"answer": 3}', '{"answer": "not the answer"}'])
def test_an_answer_in_the_cache_that_cannot_be_read_is_asked_for_again(
    server: Server, tmp_path: Path, content: str
) -> None:
    explainer, evidence = OpenAI(endpoint(server, tmp_path), 1), pairs(1)[0][0]
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
    OpenAI(endpoint(server, tmp_path / "a"), 1).describe(pairs(1)[0][0])
    for name in variables:
        monkeypatch.setenv(name, "http://127.0.0.1:1/elsewhere")
    monkeypatch.setenv("OPENAI_API_KEY", "another-key")
    OpenAI(endpoint(server, tmp_path / "b"), 1).describe(pairs(1)[0][0])
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
    (described,) = describe(OpenAI(endpoint(server, tmp_path, timeout=0.5), 1), *pairs(1))
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
        describe(OpenAI(endpoint(server, tmp_path, timeout=0.2), 1), *pairs(1))
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    gone = Server()
    gone.close()
    with pytest.raises(UserError, match=rf"{gone.url} failed 3 times in a row \(no connection"):
        describe(OpenAI(endpoint(gone, tmp_path), 1), *pairs(1))


def test_an_answer_that_says_nothing_leaves_the_latent_without_description(server: Server, tmp_path: Path) -> None:
    empty = json.dumps({"choices": [{"message": {"content": "I would rather not say."}}]})
    server.misbehave = [empty] * 3
    assert [described.description for described in describe(OpenAI(endpoint(server, tmp_path), 1), *pairs(1))] == [None]
    server.misbehave = [empty] * 3
    explainer = OpenAI(endpoint(server, tmp_path), 1)
    with pytest.raises(NoAnswerError):
        explainer.describe(pairs(1)[0][0])


def test_the_cost_cap_stops_before_it_is_passed_and_a_rerun_asks_for_the_rest(server: Server, tmp_path: Path) -> None:
    # A request costs 0.0011 USD by the server's count, and at most about 0.0014 by what was sent.
    prices = {"usd_per_million_input": 1.0, "usd_per_million_output": 1.0}
    with pytest.raises(UserError, match=r"max_usd: 0.005 USD would be exceeded after \d+ requests.*rerun") as caught:
        describe(OpenAI(endpoint(server, tmp_path, max_usd=0.005, **prices), 2), *pairs(6))
    assert "\n" not in str(caught.value)
    asked = len(server.requests)
    assert 1 <= asked <= 4
    described = describe(OpenAI(endpoint(server, tmp_path, max_usd=1.0, **prices), 2), *pairs(6))
    assert [d.score for d in described] == [1.0] * 6
    assert len(server.requests) == 18


@pytest.mark.parametrize("missing", ["url", "model"])
def test_settings_that_name_no_server_are_refused_at_once(tmp_path: Path, missing: str) -> None:
    settings = OpenAISettings(**{"url": "http://localhost/v1", "model": "m", missing: None})
    with pytest.raises(UserError, match=f"openai.{missing} is not set; set it, or take explainer: statistics"):
        Endpoint(settings, tmp_path, {})
