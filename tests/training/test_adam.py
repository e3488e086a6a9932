"""The fused optimiser step against torch.optim.Adam and explicit projection."""

from types import ModuleType

import pytest
import torch

from transcoders.training.adam import cuda as adam_triton
from transcoders.training.adam import step as adam
from transcoders.training.adam.step import adam_step_

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("module", [adam, adam_triton])  # without a GPU: by Triton's interpreter
@pytest.mark.parametrize("unit_rows", [False, True])
def test_equals_torch_adam_with_projection_and_normalisation(unit_rows: bool, module: ModuleType) -> None:
    g = torch.Generator().manual_seed(0)
    ours = torch.nn.functional.normalize(torch.randn(37, 19, generator=g)).to(DEVICE)
    theirs = ours.clone().requires_grad_()
    torch_adam = torch.optim.Adam([theirs], lr=0.03)
    exp_avg, exp_avg_sq = torch.zeros_like(ours), torch.zeros_like(ours)
    for step in range(1, 6):
        grad = torch.randn(37, 19, generator=g).to(DEVICE)
        projected = grad
        if unit_rows:
            projected = grad - (grad * theirs.detach()).sum(1, keepdim=True) * theirs.detach()
        square = module.projected_square_norm(ours, grad, unit_rows)
        torch.testing.assert_close(square, projected.square().sum())
        settings = {"betas": (0.9, 0.999), "eps": 1e-8, "grad_scale": 0.5, "unit_rows": unit_rows}
        module.adam_step_(ours, grad, exp_avg, exp_avg_sq, step, 0.03, **settings)
        theirs.grad = 0.5 * projected
        torch_adam.step()
        if unit_rows:
            theirs.data = torch.nn.functional.normalize(theirs.data)
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)


def test_biases_step_too() -> None:
    bias, grad = torch.zeros(8), torch.arange(8.0) - 3.5
    adam_step_(bias, grad, torch.zeros(8), torch.zeros(8), 1, lr=0.1)
    torch.testing.assert_close(bias, -0.1 * grad.sign())


def test_the_first_step_is_one() -> None:
    z = torch.zeros(2)
    with pytest.raises(ValueError, match="first step is 1"):
        adam_step_(z, z, z, z, 0, 0.1)
