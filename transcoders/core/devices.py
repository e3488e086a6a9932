"""Where to compute."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from transcoders.core.errors import UserError

log = logging.getLogger(__name__)


def resolve_device(name: str) -> torch.device:
    """Turn ``auto | cpu | cuda | cuda:N`` into a device; ``auto`` takes CUDA where there is one."""
    if name == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        log.info("device: auto took %s", device)
        return device
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: {name!r} is not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device: {name!r} was asked for, but PyTorch sees {torch.cuda.device_count()} CUDA "
            "devices; use device: auto or cpu, or install a CUDA build of torch"
        )
    return device


@contextmanager
def matmul_precision(device: torch.device, *, bf16: bool) -> Iterator[None]:
    """Multiply matrices in bfloat16, accumulating in float32, while weights and results stay float32.

    On CUDA through autocast; on CPU oneDNN does it where there is AMX.
    """
    if device.type == "cpu":
        backend = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        before = backend.fp32_precision
        backend.fp32_precision = "bf16" if bf16 else before
        try:
            yield
        finally:
            backend.fp32_precision = before
    else:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            yield


def multiplies_bf16(device: torch.device) -> bool:
    """Say whether there are instructions for bfloat16 products (AMX, AVX-512, tensor cores)."""
    if device.type == "cpu":
        return multiplies_float32_in_bf16() or torch.cpu._is_avx512_bf16_supported()
    return torch.cuda.is_bf16_supported()


def multiplies_float32_in_bf16() -> bool:
    """Say whether ``matmul_precision`` changes products of float32 matrices on this CPU."""
    return torch.cpu._is_amx_tile_supported()


def is_out_of_memory(error: Exception) -> bool:
    """Say whether an allocation failed, on a GPU or in main memory."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
