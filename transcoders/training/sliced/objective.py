"""The parts of the objective that need all slices of a dictionary (``SlicedTranscoder``)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transcoders import kernels
from transcoders.kernels import Backend, SparseLatents, SquaredErrors
from transcoders.training.sliced.transcoder import SlicedTranscoder


def sliced_squared_errors(
    model: SlicedTranscoder, latents: SparseLatents, target: Tensor, sizes: tuple[int, ...], backend: Backend
) -> SquaredErrors:
    """``kernels.squared_errors``, each rank decoding its latents; ``sizes`` are prefixes of the whole."""
    own = [model.below(size) for size in sizes]
    distinct = tuple(sorted(set(own) - {0}))
    decoded = kernels.decode_nested(latents, model.W_dec, distinct, backend)
    nothing = torch.zeros_like(target)
    parts = [decoded[distinct.index(size)] if size else nothing for size in own]
    residuals = target - model.team.summed(torch.stack(parts))
    return SquaredErrors(residuals.square().mean((1, 2)), residuals[-1].detach())


def sliced_auxk(
    model: SlicedTranscoder, x: Tensor, residual: Tensor, dead: Tensor, variance: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """``kernels.auxk`` where ``dead`` are this rank's dead latents, of which there may be none."""
    team = model.team
    k = min(model.config.d_out // 2, team.total(len(dead), x.device))
    pre = torch.addmm(model.b_enc[dead], x, model.W_enc[dead].T)
    best = pre.detach().topk(min(k, len(dead)))
    candidates = best.values.new_full((len(x), k), -torch.inf)
    candidates[:, : best.values.shape[1]] = best.values
    chosen = team.gathered(candidates).transpose(0, 1).reshape(len(x), -1).topk(k).indices
    kept = torch.zeros(len(x), team.size * k, device=x.device).scatter_(1, chosen, 1.0)
    kept = kept.view(len(x), team.size, k)[:, team.rank, : best.indices.shape[1]]
    z = (pre * torch.zeros_like(pre).scatter_(1, best.indices, kept.to(pre.dtype))).relu()
    reconstruction = team.summed((z @ model.W_dec[dead].to(z.dtype)).to(residual.dtype))
    return (residual - reconstruction).square().mean() / variance


def sliced_rows(model: SlicedTranscoder, chosen: Int[Tensor, "rows"]) -> Float[Tensor, "rows d_out"]:
    """The decoder's rows of the whole that ``chosen`` numbers, on every rank."""
    own = model.own(torch.arange(model.whole.d_hidden, device=chosen.device))
    place = torch.full((model.whole.d_hidden,), -1, device=chosen.device)
    place[own] = torch.arange(len(own), device=chosen.device)
    rows = model.W_dec[place[chosen].clamp(min=0)]
    return model.team.summed(torch.where(place[chosen, None] >= 0, rows, 0.0))
