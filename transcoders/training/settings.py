"""How a transcoder is trained."""

from typing import Annotated, Literal

from pydantic import Field

from transcoders.settings import Settings

Multiple = Annotated[str, Field(pattern=r"^[1-9][0-9]*x$")]


class VariantSettings(Settings):
    """What kind of transcoder a run trains."""

    encoder: Literal["topk"] = "topk"
    skip: bool = False
    """Add ``x W_skip^T`` to the reconstruction (arXiv 2501.18823)."""


class TrainSettings(Settings):
    """Sizes, optimisation and bookkeeping, shared by all variants."""

    d_hidden: Annotated[int, Field(gt=0)] | Multiple = "8x"
    """Number of latents F, or a multiple of d_model such as ``8x``."""
    k: int = Field(default=32, gt=0)
    """Active latents per token."""
    epochs: int = Field(default=3, gt=0)
    batch_size: int = Field(default=512, gt=0)
    """Tokens per step."""
    learning_rate: float = Field(default=7e-4, gt=0)
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps over which the learning rate rises linearly."""
    decay: float = Field(default=0.2, ge=0, le=1)
    """Share of the steps, at the end, over which the learning rate falls linearly to zero."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient."""
    lambda_sparsity: float = Field(default=0.0, ge=0)
    """Weight of an L1 penalty on the latents (sum over latents, mean over tokens)."""
    aux_coefficient: float = Field(default=0.03125, ge=0)
    """Weight of AuxK, which revives dead latents (arXiv 2406.04093, A.2); 0 turns it off."""
    dead_after_tokens: int = Field(default=50_000, gt=0)
    """A latent that has not fired for this many training tokens counts as dead."""
    dead_boost: float = Field(default=0.01, ge=0)
    """Added to a dead latent's encoder bias every step, until it fires."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Of the matrix products; auto takes float32 on CPU and bf16 on CUDA. Weights are float32."""
    backend: Literal["auto", "reference", "cpu", "triton"] = "auto"
    """Which kernels; auto takes the fastest for the device."""
    buffer_tokens: int = Field(default=131_072, gt=0)
    """Rows that the reader holds and shuffles at a time."""
    log_every: int = Field(default=20, gt=0)
    """Steps between two rows of the history."""
    validate_every: int = Field(default=200, gt=0)
    """Steps between two passes over the validation documents; the best model is kept."""
    checkpoint_every: int = Field(default=200, gt=0)
    """Steps between two checkpoints, from which an interrupted run continues."""
