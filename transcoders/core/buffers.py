"""Large buffers on CPU without the page faults."""

import ctypes
import mmap
import sys
import weakref
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_WORTHWHILE = 8 << 20
_KEPT_FOR = 64
"""Allocations for which a block may lie idle: those of a few steps."""
_idle: dict[int, list[tuple[int, NDArray[np.uint8]]]] = {}
"""Blocks that no tensor uses, by size, each with the number of the allocation that it came back after."""
_allocations = 0


def empty(*shape: int, like: Tensor) -> Tensor:
    """Return `like.new_empty(shape)` in memory that an earlier large tensor of that size has left, if there is some.

    The kernel zeroes fresh pages, and a virtual machine may have to ask its host for them first: a new
    [16384, 2304] gradient took 5 to 200 ms before a number was in it, more than computing it takes. Without these
    buffers a training step takes 1.16 to 1.21 times as long (docs/benchmarks.md).
    """
    global _allocations
    size = prod(shape) * like.element_size()
    if size < _WORTHWHILE or like.device.type != "cpu":
        return like.new_empty(shape)
    _allocations += 1
    idle = _idle.setdefault(size, [])
    if idle:
        _, block = idle.pop()
    else:
        for blocks in _idle.values():
            blocks[:] = [(since, block) for since, block in blocks if _allocations - since <= _KEPT_FOR]
        block = torch.empty(size, dtype=torch.uint8).numpy()
        _use_huge_pages(block)
    held = block.view()  # lives as long as any tensor that shares the memory
    weakref.finalize(held, lambda: idle.append((_allocations, block))).atexit = False
    return torch.from_numpy(held).view(like.dtype).view(shape)


def _use_huge_pages(block: NDArray[np.uint8]) -> None:
    libc = _libc()
    if libc is None:
        return
    start = -(-block.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (block.ctypes.data + block.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
    # Advice: where it cannot be followed it is ignored, and so is the error.
    libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
