"""`adam` compiled: each row is read and written once."""

# numba infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

import math

import numpy as np
import torch
from torch import Tensor

from transcoders.kernels.cpu.parallel import jit, part, run


def adam_step_(
    parameter: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    grad_scale: float,
    unit_rows: bool,
) -> None:
    arrays = [_rows(t) for t in (parameter, grad.contiguous(), exp_avg, exp_avg_sq)]
    rate = lr / (1 - betas[0] ** step)
    correction = 1 / math.sqrt(1 - betas[1] ** step)
    scalars = (betas[0], betas[1], rate, correction, eps, grad_scale)
    # Scalars of the parameters' own type: a float64 one would halve the vector width.
    run(_adam, *arrays, *(arrays[0].dtype.type(s) for s in scalars), unit_rows)


def projected_square_norm(parameter: Tensor, grad: Tensor, unit_rows: bool) -> Tensor:
    rows = _rows(parameter)
    squares = np.empty(len(rows), rows.dtype)
    run(_square_norms, rows, _rows(grad.contiguous()), squares, unit_rows)
    return torch.from_numpy(squares).sum()


def _rows(tensor: Tensor) -> np.ndarray:
    return tensor.detach().view(-1, tensor.shape[-1] if tensor.ndim > 1 else 1).numpy()


@jit
def _adam(share, shares, parameter, grad, exp_avg, exp_avg_sq, beta1, beta2, rate, correction, eps, scale, unit_rows):
    one = parameter.dtype.type(1)
    for i in range(*part(len(parameter), share, shares)):
        w, g, m, v = parameter[i], grad[i], exp_avg[i], exp_avg_sq[i]
        along = parameter.dtype.type(0)
        if unit_rows:
            for j in range(len(w)):
                along += g[j] * w[j]
        norm = parameter.dtype.type(0)
        for j in range(len(w)):
            step = scale * (g[j] - along * w[j])
            m[j] = beta1 * m[j] + (one - beta1) * step
            v[j] = beta2 * v[j] + (one - beta2) * step * step
            w[j] -= rate * m[j] / (np.sqrt(v[j]) * correction + eps)
            norm += w[j] * w[j]
        if unit_rows:
            inverse = one / np.sqrt(norm)
            for j in range(len(w)):
                w[j] *= inverse


@jit
def _square_norms(share, shares, parameter, grad, squares, unit_rows):
    for i in range(*part(len(parameter), share, shares)):
        w, g = parameter[i], grad[i]
        square = along = parameter.dtype.type(0)
        for j in range(len(w)):
            square += g[j] * g[j]
            along += g[j] * w[j]
        squares[i] = square - along * along if unit_rows else square
