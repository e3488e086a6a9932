"""Describing every latent that fires, and scoring what was said of it."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from transcoders.features.effects import Effects
from transcoders.features.explain import Context, Description, Evidence, Explainer, NoAnswerError
from transcoders.features.keep import Keeper
from transcoders.features.observe import PAD, Observer
from transcoders.features.scores import Unseen, detection_score, fuzzing_score
from transcoders.features.statistics import word

T = TypeVar("T")


class Texts:
    """Turn token ids into text, and decode each id once."""

    known: dict[int, str]

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.known = {}

    def learn(self, ids: NDArray[np.integer[Any]]) -> None:
        """Decode the ids that are new."""
        new = [i for i in np.unique(ids).tolist() if i != PAD and i not in self.known]
        if new:
            self.known.update(zip(new, self._tokenizer.batch_decode([[i] for i in new]), strict=True))

    def of(self, ids: NDArray[np.integer[Any]]) -> list[str]:
        """Return the texts of ids, padding left out."""
        return [self.known[i] for i in ids.tolist() if i != PAD]


class Latents(NamedTuple):
    """Hold everything about the living latents, in the order of their ids."""

    living: NDArray[np.int64]
    evidence: list[Evidence]
    unseen: list[Unseen]
    words: dict[str, int]
    """Word -> windows (of those that may be shown) that hold it."""
    usual: list[list[str]]
    """Some of these windows, whatever fires in them."""


def gather(observer: Observer, effects: Effects, texts: Texts) -> Latents:
    """Gather what explainers see and are asked; ``effects`` are of the living latents."""
    for keeper in (observer.top, observer.sample, observer.active, observer.pool, observer.usual):
        texts.learn(keeper.fields["tokens"])
    texts.learn(np.array(list(observer.words), np.int64))
    texts.learn(effects.promoted)
    texts.learn(effects.suppressed)
    living = np.flatnonzero(observer.firings)
    tokens = sum(observer.tokens.values())
    silent = [texts.of(row) for row in observer.pool.fields["tokens"][0]]
    evidence, unseen = [], []
    for row, latent in enumerate(tqdm(living.tolist(), desc="gather", unit="latent", leave=False)):
        evidence.append(
            Evidence(
                latent,
                observer.firings[latent] / tokens,
                contexts_of(observer.top, latent, texts),
                contexts_of(observer.sample, latent, texts),
                texts.of(effects.promoted[row]),
            )
        )
        unseen.append(_unseen(observer, latent, texts, silent))
    words: Counter[str] = Counter()
    for (name,), count in zip(
        map(texts.of, np.array(list(observer.words))[:, None]), observer.words.values(), strict=True
    ):
        words[word(name)] += count
    shown = {name: min(count, observer.windows) for name, count in words.items()}
    usual = [texts.of(row) for row in observer.usual.fields["tokens"][0][observer.usual.of(0)]]
    return Latents(living, evidence, unseen, shown, usual)


def contexts_of(keeper: Keeper, latent: int, texts: Texts) -> list[Context]:
    """Return what a keeper holds for a latent, largest key first."""
    slots = keeper.of(latent)
    windows = zip(keeper.fields["tokens"][latent][slots], keeper.fields["values"][latent][slots], strict=True)
    return [Context(texts.of(tokens), values[tokens != PAD].tolist()) for tokens, values in windows]


def _unseen(observer: Observer, latent: int, texts: Texts, silent: list[list[str]]) -> Unseen:
    slots = observer.active.of(latent)
    filled = observer.pool.of(0)
    quiet = filled[~observer.pool.fields["fires"][0][filled, latent]]
    quiet = np.random.default_rng(latent).permutation(quiet)
    n = min(len(slots), len(quiet))
    chosen = {name: values[latent][slots[:n]] for name, values in observer.active.fields.items()}
    active = [texts.of(tokens) for tokens in chosen["tokens"]]
    fired = [np.flatnonzero(fires).tolist() for fires in chosen["fires"]]
    return Unseen(active, [silent[i] for i in quiet[:n]], fired)


class Described(NamedTuple):
    """Hold a description, if the explainer had one, and its scores, if there was text to score it on."""

    description: Description | None
    score: float | None
    """Of detection."""
    fuzzing: float | None


def describe(explainer: Explainer, evidence: list[Evidence], unseen: list[Unseen]) -> list[Described]:
    """Describe latents and score the descriptions."""

    def work(pair: tuple[Evidence, Unseen]) -> Described:
        description = _unless_silent(lambda: explainer.describe(pair[0]))
        if description is None:
            return Described(None, None, None)
        detection = _unless_silent(lambda: detection_score(explainer, description, pair[1]))
        return Described(description, detection, _unless_silent(lambda: fuzzing_score(explainer, description, pair[1])))

    pairs = list(zip(evidence, unseen, strict=True))
    bar = tqdm(desc=f"describe ({explainer.name})", total=len(pairs), unit="latent")
    results = []
    with bar, ThreadPoolExecutor(explainer.concurrency) as pool:
        futures = [pool.submit(work, pair) for pair in pairs]
        try:
            for future in futures:
                results.append(future.result())
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def _unless_silent(ask: Callable[[], T]) -> T | None:
    """Return what an explainer answers; None where it has nothing usable to say."""
    try:
        return ask()
    except NoAnswerError:
        return None
