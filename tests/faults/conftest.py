"""What the tests of faults share: forked stages, and what an undisturbed run leaves."""

from collections.abc import Iterator

import pytest
from checkout import FEW, STAGES, Checkout, Undisturbed, make
from forks import Forks


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """A server that forks stages."""
    made = Forks()
    yield made
    made.close()


@pytest.fixture(scope="session")
def sources(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which nothing ran yet."""
    return make(tmp_path_factory.mktemp("sources") / "checkout", forks)


def after(sources: Checkout, name: str, stages: tuple[str, ...]) -> Undisturbed:
    """A copy of ``sources`` in which ``stages`` ran."""
    checkout, seconds = sources.copy(name), {}
    for stage in stages:
        done = checkout.run(stage)
        assert done.status == 0, done.said[-3000:]
        seconds[stage] = done.seconds
    return Undisturbed(checkout, seconds, checkout.files())


@pytest.fixture(scope="session")
def few(sources: Checkout) -> Undisturbed:
    """An undisturbed run of some stages."""
    return after(sources, "few", FEW)


@pytest.fixture(scope="session")
def everything(sources: Checkout) -> Undisturbed:
    """An undisturbed run of all stages."""
    return after(sources, "everything", tuple(STAGES))
