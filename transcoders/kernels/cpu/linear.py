"""The encoder's matrix product on CPU: all else in a step is small against it."""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def linear(
    x: Float[Tensor, "tokens d_in"], W: Float[Tensor, "d_hidden d_in"], b: Float[Tensor, "d_hidden"]
) -> Float[Tensor, "tokens d_hidden"]:
    """Return `x Wᵀ + b`, without a gradient, by oneDNN where torch has it, else by `torch.addmm`.

    `addmm` calls MKL, which took a quarter longer on the AMD processors that we measured.
    """
    onednn = _onednn() if x.dtype == torch.float32 else None
    if onednn is None:
        return torch.addmm(b, x, W.T)
    product: Tensor = onednn(x, W, b, "none", [], "")
    return product


@cache
def _onednn() -> Any:
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)
