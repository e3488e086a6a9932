"""What an absorption task asks of a dictionary, whatever made it."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from transcoders.dictionary.transcoder import Transcoder
from transcoders.kernels import SparseLatents


class Dictionary(NamedTuple):
    """Hold a dictionary in raw units. ``Dictionary(model.encode, model.W_dec)`` suits most models."""

    encode: Callable[[Float[Tensor, "tokens d_in"]], SparseLatents]
    W_dec: Float[Tensor, "d_hidden d_out"]
    b_dec: Float[Tensor, "d_out"] | float = 0.0
    skip: Callable[[Float[Tensor, "tokens d_in"]], Float[Tensor, "tokens d_out"]] | None = None
    """A path past the latents, for example ``x W_skip^T``."""


def dictionary_of(model: Transcoder) -> Dictionary:
    """Return a transcoder with its scales folded into its rows."""
    config = model.config
    scale = config.output_scale

    def skip(x: Tensor) -> Tensor:
        return x @ model.W_skip.float().T * (scale / config.input_scale)

    return Dictionary(model.encode, model.W_dec.float() * scale, model.b_dec * scale, skip if config.skip else None)
