"""`adam` on CUDA: one program a row, which reads and writes each number once."""

# Triton infers the types of what it compiles.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST = 8192
"""Columns that fit the registers of one program."""


def adam_step_(
    parameter: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    grad_scale: float | Tensor,
    unit_rows: bool,
) -> None:
    rate = lr / (1 - betas[0] ** step)
    correction = 1 / math.sqrt(1 - betas[1] ** step)
    scale = torch.as_tensor(grad_scale, dtype=torch.float32, device=parameter.device)
    scalars = (*betas, rate, correction, eps, scale)
    _launch(_adam, parameter.detach(), grad.contiguous(), exp_avg, exp_avg_sq, *scalars, unit_rows=unit_rows)


def projected_square_norm(parameter: Tensor, grad: Tensor, unit_rows: bool) -> Tensor:
    squares = torch.empty(len(grad), dtype=torch.float32, device=grad.device)
    _launch(_square_norms, parameter.detach(), grad.contiguous(), squares, unit_rows=unit_rows)
    return squares.sum()


def _launch(program, parameter: Tensor, *arguments, unit_rows: bool) -> None:
    rows, d = parameter.shape
    D = triton.next_power_of_2(d)
    if rows:
        program[(rows,)](parameter, *arguments, d, unit_rows, D, num_warps=8 if D >= 2048 else 4)


@triton.jit
def _adam(
    parameter,
    grad,
    exp_avg,
    exp_avg_sq,
    beta1,
    beta2,
    rate,
    correction,
    eps,
    scale,
    d,
    UNIT_ROWS: tl.constexpr,
    D: tl.constexpr,
):
    lane = tl.arange(0, D)
    inside = lane < d
    at = tl.program_id(0).to(tl.int64) * d + lane
    w = tl.load(parameter + at, mask=inside, other=0.0)
    g = tl.load(grad + at, mask=inside, other=0.0)
    if UNIT_ROWS:
        g -= tl.sum(g * w, 0) * w
    g *= tl.load(scale)
    m = beta1 * tl.load(exp_avg + at, mask=inside, other=0.0) + (1 - beta1) * g
    v = beta2 * tl.load(exp_avg_sq + at, mask=inside, other=0.0) + (1 - beta2) * g * g
    w -= tl.where(inside, rate * m / (tl.sqrt(v) * correction + eps), 0.0)
    if UNIT_ROWS:
        w /= tl.sqrt(tl.sum(w * w, 0))
    tl.store(parameter + at, w, mask=inside)
    tl.store(exp_avg + at, m, mask=inside)
    tl.store(exp_avg_sq + at, v, mask=inside)


@triton.jit
def _square_norms(parameter, grad, squares, d, UNIT_ROWS: tl.constexpr, D: tl.constexpr):
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, D)
    g = tl.load(grad + row * d + lane, mask=lane < d, other=0.0)
    square = tl.sum(g * g, 0)
    if UNIT_ROWS:
        along = tl.sum(g * tl.load(parameter + row * d + lane, mask=lane < d, other=0.0), 0)
        square -= along * along
    tl.store(squares + row, square)
