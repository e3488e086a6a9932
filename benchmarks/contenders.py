"""One whole training step, as we do it and as others do it, on the same weights and data."""

import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from transcoders import kernels
from transcoders.core.devices import multiplies_bf16
from transcoders.dictionary.config import TranscoderConfig
from transcoders.kernels import SparseLatents
from transcoders.training.adam.step import adam_step_, projected_square_norm
from transcoders.training.settings import VariantSettings

LR = 1e-4
AUX_COEFFICIENT = 1 / 32


class Size(NamedTuple):
    d: int
    d_hidden: int
    k: int
    batch: int


class Problem(NamedTuple):
    """Hold the tensors that all contenders share, weights included."""

    size: Size
    x: Float[Tensor, "tokens d"]
    y: Float[Tensor, "tokens d"]
    W_enc: Float[Tensor, "d_hidden d"]
    b_enc: Float[Tensor, "d_hidden"]
    W_dec: Float[Tensor, "d_hidden d"]
    b_dec: Float[Tensor, "d"]
    moments: list[tuple[Tensor, Tensor]]
    """Of our Adam, for all of our variants."""

    @property
    def parameters(self) -> list[Tensor]:
        return [self.W_enc, self.b_enc, self.W_dec, self.b_dec]


def problem(size: Size, device: torch.device) -> Problem:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    x, y = randn(size.batch, size.d), randn(size.batch, size.d)
    W_enc, W_dec = randn(size.d_hidden, size.d) / size.d**0.5, randn(size.d_hidden, size.d)
    zeros = partial(torch.zeros, device=device)
    weights = (W_enc, zeros(size.d_hidden), normalize(W_dec), zeros(size.d))
    moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
    W_enc, b_enc, W_dec, b_dec = (w.requires_grad_() for w in weights)
    return Problem(size, x, y, W_enc, b_enc, W_dec, b_dec, moments)


Encode = Callable[[Tensor, Problem], SparseLatents]


def topk(x: Tensor, p: Problem) -> SparseLatents:
    return kernels.topk_encode(x, p.W_enc, p.b_enc, p.size.k)


def batchtopk(x: Tensor, p: Problem) -> SparseLatents:
    return kernels.batchtopk_encode(x, p.W_enc, p.b_enc, p.size.k)


def groupmax(x: Tensor, p: Problem) -> SparseLatents:
    return kernels.groupmax_encode(x, p.W_enc, p.b_enc, p.size.k)


def nested(x: Tensor, p: Problem) -> SparseLatents:
    """Encode as the variant ``matryoshka`` does: each of the groups chooses its share of k."""
    return kernels.topk_encode(x, p.W_enc, p.b_enc, nested_config(p.size).groups)


def nested_config(size: Size) -> TranscoderConfig:
    """Return the config of the delivered nested variants' groups, at this size."""
    variant = VariantSettings(prefixes=(1 / 16, 1 / 8, 1 / 4, 1 / 2, 1))
    prefixes, ks = variant.sizes(size.d_hidden), variant.ks(size.k)
    return TranscoderConfig(d_in=size.d, d_out=size.d, d_hidden=size.d_hidden, k=size.k, prefixes=prefixes, prefix_k=ks)


def ours(
    p: Problem,
    encode: Encode = topk,
    dead: float = 0.0,
    aux_share: float = 1.0,
    prefixes: tuple[int, ...] = (),
) -> Callable[[], None]:
    """Return our step: clip and fused Adam included; optionally AuxK (on a share of tokens) or nested."""
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(p.size.d_hidden, generator=generator).to(p.x.device)
    dead_ids = order[: round(dead * p.size.d_hidden)].sort().values
    aux_tokens = round(aux_share * p.size.batch)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        x = p.x.bfloat16() if p.x.is_cuda else p.x
        latents = encode(x, p)
        errors, residual = kernels.squared_errors(latents, p.W_dec, p.y - p.b_dec, prefixes)
        errors.mean().backward()  # type: ignore[no-untyped-call]
        if len(dead_ids):
            weights = (p.W_enc, p.b_enc, p.W_dec, dead_ids, min(p.size.d // 2, len(dead_ids)))
            x_seen, residual_seen = x[:aux_tokens], residual[:aux_tokens]
            x_seen = x_seen.bfloat16() if multiplies_bf16(x.device) else x_seen  # as training does
            aux = kernels.auxk(x_seen, residual_seen, *weights)
            (AUX_COEFFICIENT * aux).backward()  # type: ignore[no-untyped-call]
        update_(p, done)

    return step


def update_(p: Problem, step: int) -> None:
    grads = [w.grad for w in p.parameters if w.grad is not None]
    square = torch.stack(
        [
            projected_square_norm(w.detach(), grad, unit_rows=w is p.W_dec)
            for w, grad in zip(p.parameters, grads, strict=True)
        ]
    ).sum()
    clip = (
        1 / square.sqrt().clamp(min=1.0) if square.is_cuda else 1 / max(1.0, float(square) ** 0.5)
    )  # as `Adam` has it
    for w, grad, (mean, square) in zip(p.parameters, grads, p.moments, strict=True):
        unit_rows = w is p.W_dec
        adam_step_(w.data, grad, mean, square, step, LR, grad_scale=clip, unit_rows=unit_rows)
        w.grad = None


def dense(p: Problem) -> Callable[[], None]:
    """Return a step with TopK by scatter into a dense matrix, dense decoding, autograd and torch's fused Adam."""
    optimiser = torch.optim.Adam(p.parameters, LR, fused=True)

    def step() -> None:
        pre = torch.addmm(p.b_enc, p.x, p.W_enc.T)
        values, indices = pre.topk(p.size.k, sorted=False)
        z = torch.zeros_like(pre).scatter(1, indices, values.relu())
        loss = (z @ p.W_dec + p.b_dec - p.y).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        assert p.W_dec.grad is not None
        with torch.no_grad():
            along = (p.W_dec.grad * p.W_dec).sum(1, keepdim=True)
            p.W_dec.grad.sub_(along * p.W_dec)
            torch.nn.utils.clip_grad_norm_(p.parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            p.W_dec.div_(p.W_dec.norm(dim=1, keepdim=True))

    return step


def has_sparsify() -> bool:
    return find_spec("sparsify") is not None


def sparsify(p: Problem, fused: bool) -> Callable[[], None]:
    """Return a step of eai-sparsify's SparseCoder, in the order of its trainer; Adam as it makes it, or fused."""
    if not p.x.is_cuda:  # its Triton decoder would be chosen wherever triton is installed
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(num_latents=p.size.d_hidden, k=p.size.k, transcode=True)
    coder = SparseCoder(p.size.d, config, device="meta")
    coder.encoder.weight, coder.encoder.bias, coder.W_dec, coder.b_dec = (
        torch.nn.Parameter(w.data) for w in p.parameters
    )
    optimiser = torch.optim.Adam(coder.parameters(), LR, fused=fused or None)

    def step() -> None:
        coder.set_decoder_norm_to_unit_norm()
        coder(p.x, p.y).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()

    return step
