"""The sparse step in the most obvious torch: what every other backend is tested against.

Everything is dense inside and differentiated by autograd, so nothing here is fast or small.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from transcoders.kernels.latents import Group, SparseLatents, SquaredErrors, from_fixed_k, offsets_of


def pre_activations(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Float[Tensor, "tokens d_hidden"]:
    return (x @ W_enc.to(x.dtype).T).to(W_enc.dtype) + b_enc


def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, groups: tuple[Group, ...]) -> SparseLatents:
    pre = pre_activations(x, W_enc, b_enc)
    indices = torch.cat([start + pre[:, start:stop].topk(k).indices.sort().values for start, stop, k in groups], 1)
    return from_fixed_k(indices, pre.gather(1, indices).relu(), len(W_enc))


def batchtopk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> SparseLatents:
    pre = pre_activations(x, W_enc, b_enc)
    mask = torch.zeros_like(pre, dtype=torch.bool)
    mask.view(-1)[pre.flatten().topk(k * len(x)).indices] = True
    return _masked(pre, mask)


def threshold_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: float | Tensor) -> SparseLatents:
    pre = pre_activations(x, W_enc, b_enc)
    return _masked(pre, (pre > threshold) & (pre > 0))


def groupmax_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> SparseLatents:
    pre = pre_activations(x, W_enc, b_enc)
    size = len(W_enc) // k
    winners = pre.view(len(x), k, size).argmax(2)
    indices = winners + size * torch.arange(k, device=x.device)
    return from_fixed_k(indices, pre.gather(1, indices).relu(), len(W_enc))


def auxk(
    x: Tensor, residual: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, dead: Tensor, k_aux: int, variance: Tensor
) -> Tensor:
    if len(dead) == 0:
        return residual.new_zeros(())
    pre = pre_activations(x, W_enc[dead], b_enc[dead])
    best = pre.topk(min(k_aux, len(dead)))
    z = torch.zeros_like(pre).scatter(1, best.indices, best.values.relu())
    return (residual.detach() - z @ W_dec[dead]).square().mean() / variance


def decode_nested(
    latents: SparseLatents, W_dec: Tensor, prefixes: tuple[int, ...]
) -> Float[Tensor, "prefixes tokens d_out"]:
    z = latents.dense()
    return torch.stack([z[:, :m] @ W_dec[:m] for m in prefixes])


def squared_errors(latents: SparseLatents, W_dec: Tensor, target: Tensor, prefixes: tuple[int, ...]) -> SquaredErrors:
    residuals = target - decode_nested(latents, W_dec, prefixes)
    return SquaredErrors(residuals.square().mean((1, 2)), residuals[-1].detach())


def _masked(pre: Tensor, mask: Tensor) -> SparseLatents:
    return SparseLatents(offsets_of(mask.sum(1)), mask.nonzero()[:, 1], pre[mask].relu(), pre.shape[1])
