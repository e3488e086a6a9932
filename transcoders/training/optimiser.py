"""Adam over a transcoder's parameters, with the decoder kept at unit rows in the same pass."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from transcoders.dictionary.config import PER_LATENT, kind_of
from transcoders.dictionary.dictionary import Dictionary
from transcoders.dictionary.transcoder import Transcoder
from transcoders.training.adam.step import adam_step_, projected_square_norm
from transcoders.training.sharing import HERE, Sharing

EPS = 1e-13  # losses are means over dims: gradients of rare latents are near the usual 1e-8
MOMENTS = ("exp_avg", "exp_avg_sq")
NEIGHBOURS_EVERY = 50


class Adam:
    """Take steps of Adam (arXiv 1412.6980) with clipping; decoder rows move on the unit sphere."""

    def __init__(self, model: Dictionary, sharing: Sharing = HERE, slow_rows: int = 0, slow_rate: float = 1.0) -> None:
        """Start with zero moments; what requires no gradient stays as it is.

        The first ``slow_rows`` latents, biases and skip connection learn at ``slow_rate`` times the rate.
        """
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._sharing = sharing
        self._slow_rows, self._slow_rate = slow_rows, slow_rate
        self.moments: dict[str, dict[str, Tensor]] = {
            name: {key: torch.zeros_like(value) for key in MOMENTS} for name, value in self._parameters.items()
        }

    @torch.no_grad()
    def step_(self, step: int, rate: float, clip: float) -> Float[Tensor, ""]:
        """Take step number ``step`` (from 1), with the gradient scaled to a norm of at most ``clip``.

        The norm counts no gradient along a decoder row, which is removed. Returns it, unclipped.
        """
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        norms = {
            name: projected_square_norm(self._parameters[name], gradient, unit_rows=kind_of(name) == "W_dec")
            for name, gradient in gradients.items()
        }
        squares = torch.stack(list(norms.values()))
        if self._sharing.processes > 1:  # each has the squares of its latents; those of other weights all have
            sliced = torch.tensor([kind_of(name) in PER_LATENT for name in norms], device=squares.device)
            squares = torch.where(sliced, self._sharing.sum_(squares.clone()), squares)
        norm = squares.sum().sqrt()
        if norm.is_cuda:  # stays there: reading it would let the GPU run out of work at every step
            scale: float | Tensor = (clip / norm.clamp(min=1e-30)).clamp(max=1.0)
        else:
            scale = min(1.0, clip / max(float(norm), 1e-30))
        for name, gradient in gradients.items():
            for rows, factor in self._rates(name):
                first, second = (self.moments[name][key][rows] for key in MOMENTS)
                adam_step_(
                    self._parameters[name][rows],
                    gradient[rows],
                    first,
                    second,
                    step=step,
                    lr=rate * factor,
                    eps=EPS,
                    grad_scale=scale,
                    unit_rows=kind_of(name) == "W_dec",
                )
        return norm

    def _rates(self, name: str) -> list[tuple[slice, float]]:
        if not self._slow_rows:
            return [(slice(None), 1.0)]
        if kind_of(name) not in PER_LATENT:
            return [(slice(None), self._slow_rate)]
        return [(slice(self._slow_rows), self._slow_rate), (slice(self._slow_rows, None), 1.0)]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moments by ``<moment>.<parameter>``."""
        return {f"{key}.{name}": m[key] for name, m in self.moments.items() for key in MOMENTS}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over the moments that ``state_dict`` gave."""
        for name, values in self.moments.items():
            for key in MOMENTS:
                values[key].copy_(state[f"{key}.{name}"])


class Projection:
    """Keep decoder rows orthogonal to the span of the earlier rows that are most similar to each."""

    def __init__(self, model: Transcoder, earlier: Transcoder, count: int) -> None:
        """Hold the rows of ``model`` off the ``count`` nearest rows of ``earlier``, which is frozen."""
        self._rows, self._earlier = model.W_dec, earlier.W_dec
        self._count = min(count, len(earlier.W_dec), model.config.d_out - 1)
        self.neighbours: Int[Tensor, "rows count"] = self._rows.new_zeros((0, self._count), dtype=torch.long)
        self._basis: Float[Tensor, "rows d_out count"] | None = None

    @torch.no_grad()
    def apply_(self, step: int) -> None:
        """Project the rows and bring them back to norm 1; every ``NEIGHBOURS_EVERY`` steps look who is near."""
        if step % NEIGHBOURS_EVERY == 0 or not len(self.neighbours):
            nearest = [(part @ self._earlier.T).abs().topk(self._count).indices for part in self._rows.split(1024)]
            self.neighbours, self._basis = torch.cat(nearest), None
        if self._basis is None:
            self._basis = torch.linalg.qr(self._earlier[self.neighbours].transpose(1, 2)).Q
        inside = torch.einsum("ndc,nd->nc", self._basis, self._rows)
        self._rows.copy_(normalize(self._rows - torch.einsum("ndc,nc->nd", self._basis, inside)))
