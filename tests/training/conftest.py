from collections.abc import Iterator

import pytest
import torch
from tests_support import make_store

from transcoders.activations.store import Store


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """y = a sparse combination of 24 directions that x announces, plus offsets in x and y."""
    torch.manual_seed(0)
    active = (torch.rand(6000, 24) < 0.1) * (1 + torch.rand(6000, 24))
    x = active @ torch.nn.functional.normalize(torch.randn(24, 16)) + 0.5
    y = 30 * (active @ torch.nn.functional.normalize(torch.randn(24, 16)) - 1.0)
    return Store(make_store(tmp_path_factory.mktemp("planted") / "s.zarr", x, y))


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """As the stage trains: on CUDA some of torch's sums would otherwise come out in any order."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
