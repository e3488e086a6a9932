"""Adam over a transcoder's parameters, with the decoder kept at unit rows in the same pass."""

import torch
from jaxtyping import Float
from torch import Tensor

from transcoders.dictionary.transcoder import Transcoder
from transcoders.kernels.adam import adam_step_, projected_square_norm

EPS = 1e-13  # losses are means over dims: gradients of rare latents are near the usual 1e-8
MOMENTS = ("exp_avg", "exp_avg_sq")


class Adam:
    """Adam (arXiv 1412.6980) with clipping; decoder rows move on the unit sphere."""

    def __init__(self, model: Transcoder) -> None:
        """Start with zero moments."""
        self._parameters = dict(model.named_parameters())
        self.moments: dict[str, dict[str, Tensor]] = {
            name: {key: torch.zeros_like(value) for key in MOMENTS} for name, value in self._parameters.items()
        }

    @torch.no_grad()
    def step_(self, step: int, rate: float, clip: float) -> Float[Tensor, ""]:
        """Take step number ``step`` (from 1), with the gradient scaled to a norm of at most ``clip``.

        The norm counts no gradient along a decoder row, which is removed. Returns it, unclipped.
        """
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        squares = [
            projected_square_norm(self._parameters[name], gradient, unit_rows=name == "W_dec")
            for name, gradient in gradients.items()
        ]
        norm = torch.stack(squares).sum().sqrt()
        scale = min(1.0, clip / max(float(norm), 1e-30))
        for name, gradient in gradients.items():
            adam_step_(
                self._parameters[name], gradient, self.moments[name]["exp_avg"], self.moments[name]["exp_avg_sq"],
                step=step, lr=rate, eps=EPS, grad_scale=scale, unit_rows=name == "W_dec",
            )  # fmt: skip
        return norm

    def state(self) -> dict[str, Tensor]:
        """The moments by ``<moment>.<parameter>``."""
        return {f"{key}.{name}": m[key] for name, m in self.moments.items() for key in MOMENTS}

    @torch.no_grad()
    def load_(self, state: dict[str, Tensor]) -> None:
        """Take over the moments that ``state`` gave."""
        for name, values in self.moments.items():
            for key in MOMENTS:
                values[key].copy_(state[f"{key}.{name}"])
