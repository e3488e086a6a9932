"""How a transcoder is trained."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from transcoders.core.settings import Settings

Multiple = Annotated[str, Field(pattern=r"^[1-9][0-9]*x$")]
Share = Annotated[float, Field(gt=0, le=1)]
Shares = Annotated[tuple[Share, ...], Field(strict=False)]
DHidden = Annotated[int, Field(gt=0)] | Multiple
"""Latents: a number, or a multiple of d_model."""
Weights = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False)]
DEFAULT_K_SHARES = (0.5, 0.6875, 0.8125, 0.90625, 1.0)
"""Of k, for five prefixes that double: half of it in the first, then ever fewer (docs/recipe.md)."""


class VariantSettings(Settings):
    """Say what kind of transcoder a run trains, and how it differs from ``train``."""

    encoder: Literal["topk", "groupmax", "batchtopk", "jumprelu", "relu"] = "topk"
    skip: bool = False
    """Add ``x W_skip^T`` to the reconstruction (arXiv 2501.18823)."""
    d_hidden_share: Share = 1.0
    """Train only this share of train.d_hidden, to compare with a prefix of that size."""
    k_share: Share = 1.0
    """The same for train.k."""

    prefixes: Shares = ()
    """Nested: shares of d_hidden that are valid smaller transcoders, ascending, 1 last; none is plain."""
    prefix_k: Shares = ()
    """Shares of k active within each prefix."""
    prefix_weights: Weights = ()
    """Of each prefix's error in the loss; equal if not given."""
    sampled_prefixes: int = Field(default=0, ge=0)
    """Draw so many prefixes anew at every step (and take all latents), instead of ``prefixes``."""
    stop_gradient: bool = False
    """Each group fits what the groups before it leave, without moving them."""

    reach: Annotated[int, Field(ge=0)] | Literal["all"] | None = None
    """Cross-layer: how many later layers a latent writes to besides its own, or ``all``; null trains one layer's."""
    budget: Literal["layer", "token"] = "layer"
    """Cross-layer, topk: k latents of each layer, or k times the layers of all of a token's."""

    training: Literal["joint", "progressive"] = "joint"
    """All latents at once, or one group after another (progressive latent training)."""
    phase_fractions: Shares = ()
    """Share of the tokens for each phase of progressive training; equal if not given."""
    previous_lr_scale: float = Field(default=0.0, ge=0, le=1)
    """Learning rate of earlier phases' latents, relative; 0 freezes them."""
    joint_finish: float = Field(default=0.0, ge=0, lt=1)
    """Share of the tokens, at the end, for which progressive training trains all latents jointly."""

    orthogonality: Literal["none", "penalty", "projection"] = "none"
    """Keeps a phase's decoder rows apart from earlier ones; without phases: all rows (OrtSAE, 2509.22033)."""
    orthogonality_coefficient: float = Field(default=0.01, ge=0)
    """Weight of the penalty."""
    orthogonality_neighbours: int = Field(default=4, gt=0)
    """Projection: out of the span of so many most similar earlier rows."""

    bandwidth: float = Field(default=0.1, gt=0)
    """jumprelu: width of the rectangle in which a pre-activation moves its threshold."""
    tanh_penalty: float = Field(default=0.0, ge=0)
    """jumprelu and relu: c of the penalty ``sum of tanh(c z)`` (Circuit Tracing, 2025) in the place of L0's or L1."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        nested = len(self.prefixes)
        if nested and (self.prefixes[-1] != 1 or not all(a < b for a, b in pairwise(self.prefixes))):
            raise ValueError(f"prefixes {self.prefixes} must ascend and end with 1")
        if nested and not self.prefix_k and nested != len(DEFAULT_K_SHARES):
            raise ValueError(f"prefix_k: give a share of k for each of the {nested} prefixes")
        for name in ("prefix_k", "prefix_weights", "phase_fractions"):
            given: tuple[float, ...] = getattr(self, name)
            if given and len(given) != nested:
                raise ValueError(f"{name}: {given} has {len(given)} numbers for {nested} prefixes")
        if self.phase_fractions and abs(sum(self.phase_fractions) - 1) > 1e-6:
            raise ValueError(f"phase_fractions: {self.phase_fractions} add up to {sum(self.phase_fractions):g}, not 1")
        if not nested and (self.training == "progressive" or self.stop_gradient or self.sampled_prefixes):
            raise ValueError(
                "progressive training, stop_gradient and sampled_prefixes need prefixes, such as [0.25, 1]"
            )
        if self.stop_gradient and (self.training == "progressive" or self.sampled_prefixes):
            raise ValueError("stop_gradient goes with fixed prefixes and joint training")
        if self.budget == "token" and (self.reach is None or self.encoder != "topk" or nested):
            raise ValueError("budget: token needs reach and the encoder topk, and goes with no prefixes")
        if self.tanh_penalty and self.encoder not in ("jumprelu", "relu"):
            raise ValueError(f"tanh_penalty: {self.encoder} has no sparsity penalty; it goes with jumprelu and relu")
        if self.orthogonality == "projection" and (self.training != "progressive" or self.previous_lr_scale):
            raise ValueError("orthogonality: projection needs progressive training with previous_lr_scale: 0")
        return self

    def sizes(self, d_hidden: int) -> tuple[int, ...]:
        """Return the prefix sizes of ``d_hidden`` latents."""
        return tuple(max(1, round(share * d_hidden)) for share in self.prefixes)

    def ks(self, k: int) -> tuple[int, ...]:
        """Return the active latents within each prefix: at least one more in each."""
        shares = self.prefix_k or (DEFAULT_K_SHARES if self.prefixes else ())
        result: list[int] = []
        for left, share in zip(range(len(shares) - 1, -1, -1), shares, strict=True):
            least = result[-1] + 1 if result else 1
            result.append(max(least, min(round(share * k), k - left)))
        return tuple(result)


class TrainSettings(Settings):
    """Hold sizes, optimisation and bookkeeping, which all variants share."""

    d_hidden: DHidden = "8x"
    """Number of latents F, or a multiple of d_model such as ``8x``."""
    k: int = Field(default=32, gt=0)
    """Active latents per token."""
    epochs: int = Field(default=3, gt=0)
    batch_size: int = Field(default=512, gt=0)
    """Tokens per step."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Tokens per forward pass, gradients being accumulated to a step; null is the full batch.

    When memory runs out it is halved, with the same result (to the rounding of sums; bfloat16's, of AuxK in it).
    """
    learning_rate: float = Field(default=7e-4, gt=0)
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps (of each phase) over which the learning rate rises linearly."""
    decay: float = Field(default=0.2, ge=0, le=1)
    """Share of the steps (of each phase), at the end, over which the rate falls linearly to zero."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the full gradient."""
    lambda_sparsity: float = Field(default=0.0, ge=0)
    """Weight of an L1 penalty on the latents (sum over latents, mean over tokens).

    With the relu encoder 0 means: whatever weight brings L0 to k.
    """
    aux_coefficient: float = Field(default=0.03125, ge=0)
    """Weight of AuxK, which revives dead latents (arXiv 2406.04093, A.2); 0 turns it off."""
    aux_every: int = Field(default=1, gt=0)
    """AuxK looks at every so many-th token of a batch: an unbiased estimate, at that part of the cost."""
    dead_after_tokens: int = Field(default=50_000, gt=0)
    """A latent that has not fired for this many training tokens counts as dead."""
    dead_boost: float = Field(default=0.01, ge=0)
    """Added to a dead latent's encoder bias every step, until it fires."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Of the matrix products; weights are float32. auto takes bf16 on CUDA; on CPU float32, and bf16 for AuxK alone
    where the processor has instructions for it."""
    buffer_tokens: int = Field(default=131_072, gt=0)
    """Rows that the reader holds and shuffles at a time."""
    log_every: int = Field(default=20, gt=0)
    """Steps between two rows of the history."""
    validate_every: int = Field(default=200, gt=0)
    """Steps between two passes over the validation documents; the best model is kept."""


class CheckpointSettings(Settings):
    """Say how often training saves its state; it decides no result."""

    every: int = Field(default=200, gt=0)
    """Steps between two checkpoints, from which an interrupted run continues."""


def latents_of(d_hidden: DHidden, d_model: int) -> int:
    """Return how many latents ``train.d_hidden`` means for a model of width ``d_model``."""
    return d_hidden if isinstance(d_hidden, int) else int(d_hidden.removesuffix("x")) * d_model


def plain_of(variants: Mapping[str, VariantSettings]) -> str | None:
    """Return the name of the first variant that is plain TopK of full width, which nested ones are compared with."""
    return next((name for name, variant in variants.items() if variant == VariantSettings()), None)
