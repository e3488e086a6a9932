"""Time and memory of functions that share a machine with others."""

import ctypes
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median

import torch
from tqdm import trange

Step = Callable[[], object]


def interleaved(steps: Mapping[str, Step], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return seconds per call, round by round, after one call of each to warm up.

    Every round calls all, in an order that rotates, so that what else the machine does falls on all
    alike: compare within rounds (`ratio`).
    """
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for step in steps.values():
        step()
    for r in trange(rounds, desc="rounds", leave=False, disable=not sys.stderr.isatty()):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            _synchronise(device)
            start = time.perf_counter()
            steps[name]()
            _synchronise(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def over_seeds(values: Sequence[float]) -> str:
    """Return the mean of what seeds gave, and half of their range."""
    return f"{mean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}"


def ratio(seconds: Mapping[str, list[float]], numerator: str, denominator: str) -> float:
    """Return the median over rounds of one step's time over another's."""
    pairs = zip(seconds[numerator], seconds[denominator], strict=True)
    return median(a / b for a, b in pairs)


def peak_bytes(step: Step, device: torch.device) -> int | None:
    """Return how far memory rises during a step above what is held before it; None where unknown.

    On CPU it is the resident set's high-water mark, which Linux can reset.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - held
    if sys.platform != "linux":
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator kept would hide a rise
    Path("/proc/self/clear_refs").write_text("5")
    held = _status("VmRSS")
    step()
    return _status("VmHWM") - held


def available_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
