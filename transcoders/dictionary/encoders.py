"""The ways to choose a token's active latents: a class for each, and the only place that tells them apart.

TopK: arXiv 2406.04093, section 2.3; batchtopk: 2412.06410; jumprelu: 2407.14435.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from jaxtyping import Float
from torch import Tensor, cat, nn, where

from transcoders import kernels
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.names import EncoderName
from transcoders.kernels import Group, SparseLatents

THRESHOLD_RATE = 0.1
"""Of batchtopk's running mean of the smallest activation that it keeps."""


class Weights(Protocol):
    """Describe what an encoder asks of the transcoder that it belongs to."""

    config: TranscoderConfig
    W_enc: nn.Parameter
    b_enc: nn.Parameter
    threshold: nn.Parameter

    def largest(self, x: Tensor) -> SparseLatents:
        """Return the k largest latents of each group on each token."""

    def winners(self, x: Tensor) -> SparseLatents:
        """Return, of each group's k sets of neighbouring latents, the winners on each token."""

    def above(self, x: Tensor, threshold: Tensor | float) -> SparseLatents:
        """Return the latents above ``threshold`` on each token."""

    def group_weights(self) -> list[tuple[Tensor, Tensor, int]]:
        """Return each group's rows of W_enc and b_enc, and its k."""


class Selection(NamedTuple):
    """Hold the latents of a training batch."""

    latents: SparseLatents
    l0: Float[Tensor, "tokens"] | None = None
    """Active latents per token, where a gradient passes through it."""


class Encoder:
    """Answer what all encoders can be asked, as most of them do."""

    fixed_k = False
    """Whether it chooses k latents on every token, whatever they are worth."""
    has_threshold = False
    """Whether there is a threshold per latent, learned or (batchtopk) measured in training."""
    without_gradient: tuple[str, ...] = ()
    """Parameters that training moves otherwise."""
    chooses_over_the_batch = False
    """Whether, in training, a token's latents depend on the other tokens of its batch."""

    def encode(self, model: Weights, x: Float[Tensor, "tokens d_in"]) -> SparseLatents:
        """Return the latents of normalised ``x``, a token's not depending on the other tokens."""
        raise NotImplementedError

    def select(self, model: Weights, x: Float[Tensor, "tokens d_in"], bandwidth: float) -> Selection:
        """Return the latents of a training batch; within ``bandwidth`` of its threshold jumprelu moves that too."""
        return Selection(self.encode(model, x))

    def seeks_k(self, lambda_sparsity: float) -> bool:
        """Say whether a sparsity penalty is steered so that L0 becomes k."""
        return False

    def start_(self, model: Weights, group: Group, least: Tensor) -> None:
        """Let about k latents of ``group`` be active, ``least`` being the median token's k-th largest activation."""

    def after_step_(
        self, model: Weights, latents: Sequence[SparseLatents], minimum_: Callable[[Tensor], Tensor]
    ) -> None:
        """Move what no gradient moves by what a batch showed; ``minimum_`` takes the least over processes."""

    def constrain_(self, model: Weights) -> None:
        """Bring parameters back to where they are valid."""


class TopK(Encoder):
    """Choose the k largest pre-activations of each token (of each group), after relu."""

    fixed_k = True

    def encode(self, model: Weights, x: Tensor) -> SparseLatents:
        return model.largest(x)


class GroupMax(Encoder):
    """Choose the winner of each of k sets of neighbouring latents: a cheaper selection than TopK."""

    fixed_k = True

    def encode(self, model: Weights, x: Tensor) -> SparseLatents:
        return model.winners(x)


class BatchTopK(Encoder):
    """Choose, in training, the k · tokens largest of a batch; elsewhere what exceeds the threshold this came to."""

    has_threshold = True
    without_gradient = ("threshold",)
    chooses_over_the_batch = True

    def encode(self, model: Weights, x: Tensor) -> SparseLatents:
        return model.above(x, model.threshold)

    def select(self, model: Weights, x: Tensor, bandwidth: float) -> Selection:
        chosen = [kernels.batchtopk_encode(x, W, b, k) for W, b, k in model.group_weights()]
        return Selection(kernels.concatenate(chosen))

    def start_(self, model: Weights, group: Group, least: Tensor) -> None:
        model.threshold[group.start : group.stop] = least

    def after_step_(
        self, model: Weights, latents: Sequence[SparseLatents], minimum_: Callable[[Tensor], Tensor]
    ) -> None:
        values, indices = cat([part.values for part in latents]), cat([part.indices for part in latents])
        infinite = values.new_tensor(float("inf"))
        values = where(values > 0, values, infinite)
        for group in model.config.groups:
            inside = (indices >= group.start) & (indices < group.stop)
            smallest = minimum_(where(inside, values, infinite).amin())
            threshold = model.threshold[group.start : group.stop]
            threshold += THRESHOLD_RATE * where(smallest.isfinite(), smallest - threshold, 0.0)


class JumpReLU(Encoder):
    """Choose what exceeds a learned threshold; a penalty on L0 is steered so that k latents are active on average."""

    has_threshold = True

    def encode(self, model: Weights, x: Tensor) -> SparseLatents:
        return model.above(x, model.threshold)

    def select(self, model: Weights, x: Tensor, bandwidth: float) -> Selection:
        return Selection(*kernels.jumprelu_encode(x, model.W_enc, model.b_enc, model.threshold, bandwidth))

    def seeks_k(self, lambda_sparsity: float) -> bool:
        return True

    def start_(self, model: Weights, group: Group, least: Tensor) -> None:
        model.threshold[group.start : group.stop] = least

    def constrain_(self, model: Weights) -> None:
        model.threshold.clamp_(min=0)


class ReLU(Encoder):
    """Choose every positive pre-activation; an L1 penalty keeps them few."""

    def encode(self, model: Weights, x: Tensor) -> SparseLatents:
        return model.above(x, 0.0)

    def seeks_k(self, lambda_sparsity: float) -> bool:
        return not lambda_sparsity

    def start_(self, model: Weights, group: Group, least: Tensor) -> None:
        model.b_enc[group.start : group.stop] -= least


ENCODERS: dict[EncoderName, Encoder] = {
    "topk": TopK(),
    "groupmax": GroupMax(),
    "batchtopk": BatchTopK(),
    "jumprelu": JumpReLU(),
    "relu": ReLU(),
}
