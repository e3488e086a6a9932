"""One Adam step in one pass over memory, decoder projection and normalisation included."""

from importlib.util import find_spec
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from transcoders.training.adam import cpu


def adam_step_(
    parameter: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    exp_avg: Float[Tensor, "*shape"],
    exp_avg_sq: Float[Tensor, "*shape"],
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    grad_scale: float | Float[Tensor, ""] = 1.0,
    unit_rows: bool = False,
) -> None:
    """Take a step of Adam (arXiv 1412.6980, algorithm 1) on `grad_scale · grad`; `step` counts from 1.

    With `unit_rows` (a decoder) the gradient's component along each row is removed first and the
    row is brought back to norm 1 afterwards. Pass the factor of a gradient clip as `grad_scale`
    (on CUDA a tensor, so that nobody waits for it), its norm being `projected_square_norm(...).sqrt()`.
    Parameter and moments change in place.
    """
    if step < 1:
        raise ValueError(f"step = {step}: the first step is 1")
    fused = _fused(parameter)
    if fused is not None:
        state = (parameter, grad, exp_avg, exp_avg_sq)
        fused.adam_step_(*state, step, lr, betas, eps, grad_scale, unit_rows)
        return
    with torch.no_grad():
        if unit_rows:
            grad = grad - (grad * parameter).sum(-1, keepdim=True) * parameter
        grad = grad * grad_scale
        exp_avg.lerp_(grad, 1 - betas[0])
        exp_avg_sq.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
        denominator = (exp_avg_sq / (1 - betas[1] ** step)).sqrt_().add_(eps)
        parameter.addcdiv_(exp_avg, denominator, value=-lr / (1 - betas[0] ** step))
        if unit_rows:
            parameter /= parameter.norm(dim=-1, keepdim=True)


def projected_square_norm(
    parameter: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], unit_rows: bool = False
) -> Float[Tensor, ""]:
    """Return `||grad||²` of what `adam_step_` will use: with `unit_rows`, without the part along the rows."""
    fused = _fused(parameter)
    if fused is not None:
        square: Tensor = fused.projected_square_norm(parameter, grad, unit_rows)
        return square
    with torch.no_grad():
        total = grad.square().sum()
        if unit_rows:  # Pythagoras, rows being of norm 1
            total = total - (grad * parameter).sum(-1).square().sum()
        return total


def _fused(parameter: Tensor) -> ModuleType | None:
    """Return the module that does it in one pass; on CUDA biases, which are small, and odd types go without."""
    if not parameter.is_contiguous():
        return None
    if parameter.device.type == "cpu" and parameter.dtype in (torch.float32, torch.float64):
        return cpu
    if parameter.is_cuda and parameter.ndim == 2 and parameter.dtype == torch.float32 and find_spec("triton"):
        from transcoders.training.adam import cuda

        return cuda if parameter.shape[1] <= cuda.WIDEST else None
    return None
