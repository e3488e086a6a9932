"""Stages killed at random moments, run twice at once, or under a clock that jumps: the bytes stay the same."""

import shutil
import signal

import numpy as np
import pytest
from checkout import FEW, Checkout, Undisturbed

SEED = 7


def kill(undisturbed: Undisturbed, stage: str, checkout: Checkout, times: int, rng: np.random.Generator) -> int:
    """Kill ``stage`` so many times, look at what is there after each, let it end; the kills that hit."""
    hits = 0
    for _ in range(6 * times):
        done = checkout.run(stage, kill_after=rng.uniform(0, undisturbed.seconds[stage]))
        hits += done.status == -signal.SIGKILL
        assert done.status in (0, -signal.SIGKILL), done.said[-3000:]
        nothing_half(undisturbed, checkout, stage)
        if hits == times:
            break
        if done.status == 0:
            shutil.rmtree(checkout.cache, ignore_errors=True)  # so that there is something to do again
            checkout.forget(stage)
    done = checkout.run(stage)
    assert done.status == 0, done.said[-3000:]
    same_times(undisturbed, checkout, stage)
    return hits


def same_times(undisturbed: Undisturbed, checkout: Checkout, stage: str) -> None:
    """The comparison shows how long training took: let that be as undisturbed."""
    for out in checkout.outs(stage):
        if out.parent.name == "cost":
            shutil.copy(undisturbed.checkout.root / out.relative_to(checkout.root), out)


def nothing_half(undisturbed: Undisturbed, checkout: Checkout, stage: str) -> None:
    """Every output that is there has all the bytes of an undisturbed run's, and not one file less."""
    found = checkout.files()
    for out in checkout.outs(stage):
        if out.exists():
            place = str(out.relative_to(checkout.root))
            own, expected = (
                {n: b for n, b in files.items() if n == place or n.startswith(place + "/")}
                for files in (found, undisturbed.files)
            )
            assert own.keys() == expected.keys(), place
            assert own == expected, [name for name in own if own[name] != expected[name]]


def same(undisturbed: Undisturbed, checkout: Checkout) -> None:
    found = checkout.files()
    assert found.keys() == undisturbed.files.keys(), "a leftover, or an output too few"
    assert [name for name in found if found[name] != undisturbed.files[name]] == []


def test_killed_stages_leave_nothing_half_and_end_in_the_same_bytes(sources: Checkout, few: Undisturbed) -> None:
    checkout, rng = sources.copy("killed-few"), np.random.default_rng(SEED)
    hits = sum(kill(few, stage, checkout, 1 + 2 * (stage in ("collect", "train-plt")), rng) for stage in FEW)
    assert hits >= 7
    same(few, checkout)


@pytest.mark.slow
def test_every_stage_survives_sixty_kills(sources: Checkout, everything: Undisturbed) -> None:
    checkout, rng = sources.copy("killed"), np.random.default_rng(SEED + 1)
    hits = {stage: kill(everything, stage, checkout, 4, rng) for stage in everything.seconds}
    assert sum(hits.values()) >= 50, hits
    same(everything, checkout)


def test_the_clock_may_jump(sources: Checkout, few: Undisturbed) -> None:
    checkout = sources.copy("clock")
    for stage in FEW:
        done = checkout.run(stage, clock=True)
        assert done.status == 0, done.said[-3000:]
    same(few, checkout)


def twice(checkout: Checkout, stage: str) -> list[str]:
    """Run ``stage`` by two processes at the same moment; what those said that refused."""
    done = checkout.forks.run(*[checkout.job(stage)] * 2)
    assert 0 in {one.status for one in done}, done
    refused = [one for one in done if one.status]
    assert all(one.status == 1 and "Traceback" not in one.said for one in refused), refused
    return [one.said.splitlines()[-1] for one in refused]


def test_two_processes_of_one_stage_give_the_right_bytes_or_one_refuses(sources: Checkout, few: Undisturbed) -> None:
    checkout = sources.copy("twice-few")
    refused = {stage: twice(checkout, stage) for stage in FEW}
    same(few, checkout)
    [line] = refused.pop("train-plt")
    assert line.startswith("error: plt-1-0: another process is training it; wait until it is done, or stop")
    assert not any(refused.values()), "the others wait, or write the same"


@pytest.mark.slow
def test_every_stage_may_be_started_twice(sources: Checkout, everything: Undisturbed) -> None:
    checkout = sources.copy("twice")
    for stage in everything.seconds:
        twice(checkout, stage)
        same_times(everything, checkout, stage)
    same(everything, checkout)
