"""Where to compute."""

import logging

import torch

from transcoders.errors import UserError

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
