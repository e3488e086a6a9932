"""Large buffers that come back: never while anything sees them, and not for ever."""

import pytest
import torch
from torch import Tensor

from transcoders.core import buffers as memory
from transcoders.core.buffers import empty

SHAPE = (4096, 1024)  # 16 MiB of float32


@pytest.fixture(autouse=True)
def _nothing_idle():
    memory._idle.clear()


def buffer(dtype: torch.dtype = torch.float32) -> Tensor:
    return empty(*SHAPE, like=torch.empty(0, dtype=dtype))


def test_memory_comes_back_when_its_last_view_is_gone() -> None:
    first = buffer()
    view, address = first[7:9].detach(), first.data_ptr()
    del first
    other = buffer()
    assert other.data_ptr() != address
    del view
    assert buffer().data_ptr() == address


def test_other_dtypes_of_the_same_size_share_it() -> None:
    first = buffer(torch.bfloat16)
    assert first.dtype == torch.bfloat16
    assert first.shape == SHAPE
    address = first.data_ptr()
    del first
    assert empty(SHAPE[0], SHAPE[1] // 2, like=torch.empty(0)).data_ptr() == address


def test_a_gradient_is_taken_without_a_copy_and_given_back() -> None:
    addresses = []

    class Ones(torch.autograd.Function):
        @staticmethod
        def forward(ctx, w):
            return w.sum()

        @staticmethod
        def backward(ctx, *grads):
            out = buffer().fill_(1.0)
            addresses.append(out.data_ptr())
            return out

    w = torch.zeros(SHAPE, requires_grad=True)
    for _ in range(2):
        Ones.apply(w).backward()
        assert w.grad is not None
        assert w.grad.data_ptr() == addresses[-1]
        w.grad = None
    assert addresses[0] == addresses[1]


def test_what_lies_idle_for_long_is_let_go() -> None:
    buffer()
    assert sum(map(len, memory._idle.values())) == 1
    for rows in range(2 * SHAPE[0], 2 * SHAPE[0] + memory._KEPT_FOR + 2):  # sizes that were never there
        empty(rows, SHAPE[1], like=torch.empty(0))
    assert not memory._idle[4 * SHAPE[0] * SHAPE[1]]


def test_small_tensors_are_torchs_own() -> None:
    assert empty(3, 4, like=torch.empty(0)).shape == (3, 4)
    assert memory._idle == {}
