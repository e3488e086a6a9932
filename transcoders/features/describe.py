"""Describing every latent that fires, and scoring what was said of it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from transcoders.features.effects import Effects
from transcoders.features.explain import Contexts, Description, Evidence, Explainer, NoAnswerError
from transcoders.features.keep import Keeper
from transcoders.features.observe import Observer
from transcoders.features.scores import Unseen, detection_score, fuzzing_score
from transcoders.features.texts import Texts

T = TypeVar("T")


class Latents(NamedTuple):
    """Hold everything that explainers see and are asked about the living latents, in the order of their ids."""

    living: NDArray[np.int64]
    evidence: list[Evidence]
    unseen: list[Unseen]


def gather(observer: Observer, effects: Effects, texts: Texts) -> Latents:
    """Gather what explainers see and are asked; ``effects`` are of the living latents."""
    living = np.flatnonzero(observer.firings)
    density = observer.firings[living] / sum(observer.tokens.values())
    evidence = [
        Evidence(
            latent,
            share,
            contexts_of(observer.top, latent),
            contexts_of(observer.sample, latent),
            texts.of(promoted),
        )
        for latent, share, promoted in zip(living.tolist(), density.tolist(), effects.promoted, strict=True)
    ]
    filled = observer.pool.of(0)
    tokens, fires = (observer.pool.fields[name][0][filled] for name in ("tokens", "fires"))
    return Latents(living, evidence, [_unseen(observer, i, tokens[~fires[:, i]]) for i in living.tolist()])


def contexts_of(keeper: Keeper, latent: int) -> Contexts:
    """Return what a keeper holds for a latent, largest key first."""
    slots = keeper.of(latent)
    return Contexts(keeper.fields["tokens"][latent][slots], keeper.fields["values"][latent][slots])


def _unseen(observer: Observer, latent: int, silent: NDArray[np.int32]) -> Unseen:
    """Return held-out windows in which a latent fires, and as many of the ``silent`` ones, drawn at random."""
    slots = observer.active.of(latent)
    count = min(len(slots), len(silent))
    drawn = np.random.default_rng(latent).permutation(len(silent))[:count]
    active, fired = (observer.active.fields[name][latent][slots[:count]] for name in ("tokens", "fires"))
    return Unseen(active, silent[drawn], fired)


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
