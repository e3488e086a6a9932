"""Compiled loops on torch's own threads.

OpenMP threads wait actively for their next task, so two pools in turn take the cores from each
other. The shares of a loop therefore run in an OpenMP region of the very library that torch has
loaded. (On a machine shared with others even one pool is better told to wait passively: set
`OMP_WAIT_POLICY=passive` before torch is imported. It halved our step there.)
"""

# numba infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from numba import njit

# Sums may be vectorised and use fused multiply-add; the order is then fixed when compiled.
# (numpy's error model, for a check of every divisor would stop the vectorising.)
jit = njit(fastmath={"reassoc", "contract", "nsz"}, error_model="numpy", cache=True, nogil=True)
# Comparisons that decide what is selected are taken literally.
jit_exact = njit(cache=True, nogil=True)

# More shares than threads, taken as threads become free: some threads are slower than others.
_SHARES_PER_THREAD = 8
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_compiled: set[Any] = set()


@jit
def part(rows, share, shares):
    """Return the first row of a share, and the first row after it."""
    return rows * share // shares, rows * (share + 1) // shares


def shares() -> int:
    """Return how many shares to split a loop into; results never depend on it."""
    threads = torch.get_num_threads()
    return 1 if threads == 1 else _SHARES_PER_THREAD * threads


def run(kernel: Callable[..., None], *arguments: Any) -> None:
    """Call `kernel(share, shares, *arguments)` for every share, on as many threads as torch uses.

    The kernel must release the GIL, and write for each share where no other share does.
    """
    count = shares()
    types = (kernel, *(getattr(a, "dtype", type(a)) for a in arguments))
    if count == 1 or types not in _compiled:
        for share in range(count):  # compilation needs the stack of a main thread
            kernel(share, count, *arguments)
        _compiled.add(types)
        return
    todo = iter(range(count))  # advancing it is atomic under the GIL
    errors: list[BaseException] = []

    def work(_: Any) -> None:
        try:
            for share in todo:
                kernel(share, count, *arguments)
        except BaseException as error:  # it cannot pass through C: raised below
            errors.append(error)

    _on_threads(work, torch.get_num_threads())
    if errors:
        raise errors[0]


def _on_threads(work: Callable[[Any], None], threads: int) -> None:
    gomp = _torch_openmp()
    if gomp is not None:
        gomp.GOMP_parallel(_CALLBACK(work), None, threads, 0)
    else:
        list(_pool(threads).map(work, range(threads)))


@cache
def _torch_openmp() -> Any:
    """Return the GNU OpenMP runtime of this process, or None if torch has not loaded it."""
    try:
        library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD)
        library.GOMP_parallel.argtypes = [_CALLBACK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        library.GOMP_parallel.restype = None
    except (OSError, AttributeError):
        return None
    return library


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="kernels")
