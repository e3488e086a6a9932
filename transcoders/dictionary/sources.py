"""What a transcoder of one layer answers where a cross-layer one has the latents of many."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from transcoders.dictionary.config import TranscoderConfig
from transcoders.kernels import SparseLatents
from transcoders.kernels.latents import Source


class OneSource:
    """Answer, for a transcoder, the questions about sources: its latents are the only one."""

    config: TranscoderConfig
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    W_skip: nn.Parameter
    encode_normalised: Callable[[Tensor], SparseLatents]
    decode_normalised: Callable[[SparseLatents, Tensor], Tensor]
    __call__: Callable[..., Tensor]

    @property
    def sources(self) -> Sequence[Any]:
        """Return the transcoders whose outputs add up to this one's: itself (a cross-layer transcoder has many)."""
        return (self,)

    @property
    def width(self) -> int:
        """Return the numbers in a row of outputs."""
        return self.config.d_out

    @property
    def firsts(self) -> Sequence[int]:
        """Return the first column that each source's latents write to."""
        return (0,)

    def inputs(self, x: Float[Tensor, "tokens d_in"]) -> list[Float[Tensor, "tokens d_in"]]:
        """Return what each source's encoder reads."""
        return [x]

    def normalised(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return raw activations in the units that the weights expect."""
        return x / self.config.input_scale, y / self.config.output_scale

    def target(self, x: Float[Tensor, "tokens d_in"], y: Float[Tensor, "tokens d_out"]) -> Tensor:
        """Return what the latents are to make of normalised ``y``: all but the bias and the skip connection."""
        return y - self.b_dec - (x @ self.W_skip.T if self.config.skip else 0.0)

    def written(self, latents: Sequence[SparseLatents]) -> list[Source]:
        """Return the latents of each source with the decoder that they are written out with."""
        return [Source(latents[0], self.W_dec, 0)]

    def over_slices(self, value: Tensor) -> Tensor:
        """Return the sum of ``value`` over the slices of the latents: all lie here, so it is what it was."""
        return value

    def encode_sources(self, x: Float[Tensor, "tokens d_in"]) -> list[SparseLatents]:
        """Return each source's latents of normalised inputs."""
        return [self.encode_normalised(x)]

    def decode_sources(self, latents: Sequence[SparseLatents], x: Float[Tensor, "tokens d_in"]) -> Tensor:
        """Return the normalised reconstruction from each source's latents."""
        return self.decode_normalised(latents[0], x)

    def squared_error(self, x: Float[Tensor, "tokens d_in"], y: Float[Tensor, "tokens d_out"]) -> float:
        """Return the squared error on raw activations, in normalised units, summed over tokens and dimensions."""
        return float((self(x) - y).double().square().sum()) / self.config.output_scale**2
