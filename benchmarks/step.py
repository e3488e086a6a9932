"""How fast a training step is: against its floor, against peers, and what each option adds."""

import logging
from collections import deque
from statistics import median

import torch

from benchmarks import contenders
from benchmarks.contenders import Problem, Size
from benchmarks.measure import Step, available_bytes, interleaved, peak_bytes, ratio
from transcoders.kernels.cpu import backend as cpu

log = logging.getLogger(__name__)

SIZES = [Size(640, 5120, 32, 2048), Size(640, 16384, 32, 2048), Size(2304, 16384, 64, 2048)]
SIZES += [Size(2304, 32768, 64, 4096)]
CUDA_SIZES = [Size(2304, 131072, 64, 8192)]
MATMUL = "encoder matmul"
SPARSIFY, SPARSIFY_FUSED = "sparsify", "sparsify, fused Adam"
PEERS = {"sparsify": SPARSIFY, "its Adam fused": SPARSIFY_FUSED, "dense autograd": "dense"}


def run(size: Size, rounds: int, device: torch.device) -> dict[str, list[str]]:
    """Return the rows of the three tables for one size, by table."""
    needed = _bytes_needed(size)
    if available_bytes(device) < needed:
        note = f"skipped: needs {needed / 2**30:.0f} GiB of free memory"
        return {"peers": [_row(size, note)], "options": [], "memory": []}
    p = contenders.problem(size, device)
    options = _options(p)
    peers = _peers(p)
    log.info("%s: %d steps, %d rounds", tuple(size), len(options) + len(peers), rounds)
    peers_s = interleaved({MATMUL: _matmul(p), "ours": options["topk"]} | peers, rounds, device)
    options_s = interleaved(options, rounds, device)
    return {
        "peers": [_peers_row(size, peers_s)],
        "options": [_options_row(size, options_s)],
        "memory": [_memory_row(p, {"ours": options["topk"]} | peers, device)],
    }


def _matmul(p: Problem) -> Step:
    """Return the encoder's product with its bias, as fast as we know how to have it."""
    x, W, b = p.x, p.W_enc.detach(), p.b_enc.detach()
    if x.is_cuda:
        x, W = x.bfloat16(), W.bfloat16()
        return lambda: x @ W.T
    return lambda: deque(cpu.Encoder(x, W, b).chunks(), maxlen=0)


def _options(p: Problem) -> dict[str, Step]:
    return {
        "topk": contenders.ours(p),
        "nested": contenders.ours(p, encode=contenders.nested, prefixes=contenders.nested_config(p.size).prefixes),
        "auxk": contenders.ours(p, dead=0.05),
        "auxk_quarter": contenders.ours(p, dead=0.05, aux_share=0.25),
        "batchtopk": contenders.ours(p, encode=contenders.batchtopk),
        "groupmax": contenders.ours(p, encode=contenders.groupmax),
    }


def _peers(p: Problem) -> dict[str, Step]:
    peers: dict[str, Step] = {"dense": contenders.dense(p)}
    if contenders.has_sparsify():
        peers[SPARSIFY] = contenders.sparsify(p, fused=False)
        peers[SPARSIFY_FUSED] = contenders.sparsify(p, fused=True)
    else:
        log.warning("eai-sparsify is not installed: its columns stay empty")
    return peers


def _peers_row(size: Size, seconds: dict[str, list[float]]) -> str:
    times = [f"{1e3 * median(seconds[name]):.0f}" for name in (MATMUL, "ours")]
    share = f"{100 * ratio(seconds, MATMUL, 'ours'):.0f} %"
    against = [
        f"{ratio(seconds, name, 'ours'):.2f}×" if name in seconds else "not installed" for name in PEERS.values()
    ]
    return _row(size, *times, share, *against)


def _options_row(size: Size, seconds: dict[str, list[float]]) -> str:
    return _row(size, *(f"{ratio(seconds, name, 'topk'):.2f}×" for name in seconds if name != "topk"))


def _memory_row(p: Problem, steps: dict[str, Step], device: torch.device) -> str:
    """Return the row of peaks above weights and moments; gradients, which all make, are given beside."""
    peaks = {name: peak_bytes(step, device) for name, step in steps.items()}
    gradients = sum(w.numel() * w.element_size() for w in p.parameters)
    one = p.size.batch * p.size.d_hidden * (2 if device.type == "cuda" else 4)
    cells = ["" if (peak := peaks.get(name)) is None else f"{peak / 2**20:.0f}" for name in ("ours", SPARSIFY, "dense")]
    return _row(p.size, f"{gradients / 2**20:.0f}", f"{one / 2**20:.0f}", *cells)


def _bytes_needed(size: Size) -> int:
    """Count weights, gradients, the moments of four optimisers, and copies of sparsify's expanded rows."""
    weights = 8 * size.d * size.d_hidden
    return 10 * weights + 12 * size.batch * size.k * size.d + 12 * size.batch * size.d_hidden


def _row(size: Size, *cells: str) -> str:
    return "| " + " | ".join([f"{size.d}, {size.d_hidden}, {size.k}, {size.batch}", *cells]) + " |"
