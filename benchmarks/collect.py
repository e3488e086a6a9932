"""Collecting activations against plain Hugging Face modules that run the same layers."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from transcoders.language.forward import forward
from transcoders.language.model import load_bridge
from transcoders.language.settings import HookSettings
from transcoders.language.taps import Tap, resolve_tap

LAYER = 9
SHAPES = ((4, 256), (8, 256), (16, 256), (16, 128), (8, 512))


class _StopError(Exception):
    pass


def run(folder: Path, rounds: int, device: torch.device) -> list[str]:
    """Return the rows: batch shape, tokens/s of both, and the median over rounds of the ratio within a round."""
    bridge = load_bridge(folder, device)
    tap = resolve_tap(bridge, LAYER, HookSettings())
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").to(device)
    contenders = {
        "ours": lambda tokens: forward(bridge, tokens, [tap]),
        "peer": lambda tokens: _plain(peer, tap, tokens),
    }
    return [_row(shape, contenders, rounds, device) for shape in SHAPES]


def _plain(model: Any, tap: Tap, tokens: Tensor) -> dict[str, Tensor]:
    caught: dict[str, Tensor] = {}
    handles = []
    for name in (tap.hf_hook_in, tap.hf_hook_out):
        stop = name == tap.hf_hook_out

        def catch(module: Any, inputs: Any, output: Tensor, name: str = name, stop: bool = stop) -> None:
            caught[name] = output
            if stop:
                raise _StopError

        handles.append(model.get_submodule(name.removesuffix(".output")).register_forward_hook(catch))
    try:
        model.base_model(tokens, use_cache=False)
    except _StopError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return caught


@torch.inference_mode()
def _row(
    shape: tuple[int, int], contenders: dict[str, Callable[[Tensor], Any]], rounds: int, device: torch.device
) -> str:
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(rounds + 1):
        tokens = torch.randint(1000, 100_000, shape, device=device)
        for name, work in contenders.items():
            start = time.perf_counter()
            work(tokens)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_number:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    size = shape[0] * shape[1]
    ratio = median(b / a for a, b in zip(seconds["ours"], seconds["peer"], strict=True))
    rates = " | ".join(f"{size / median(seconds[name]):.0f}" for name in ("ours", "peer"))
    return f"| {shape[0]}, {shape[1]} | {rates} | {ratio:.2f}x |"
