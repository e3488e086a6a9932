"""The threshold that makes batchtopk choose the same from the parts of a batch as from the whole."""

import torch
from jaxtyping import Float
from torch import Tensor

from transcoders import kernels
from transcoders.dictionary.transcoder import Transcoder
from transcoders.distributed.ranks import Ranks
from transcoders.training.selection import kth_largest


@torch.no_grad()
def batch_bound(
    model: Transcoder, parts: list[Float[Tensor, "tokens d_in"]], batch_size: int, ranks: Ranks
) -> Float[Tensor, "d_hidden"] | None:
    """Return the bound for each latent; None where the encoder needs none, or ``parts`` is the whole batch."""
    if not model.encoder.chooses_over_the_batch:
        return None
    if ranks.world.size > 1:
        return _bound_of_all(model, parts, batch_size, ranks)
    if len(parts) == 1:
        return None
    tokens = sum(map(len, parts))
    bounds = []
    for W, b, k in model.group_weights():
        largest = []
        for x in parts:
            k_of_part = min(len(W), -(-k * tokens // len(x)))
            largest.append(kernels.batchtopk_encode(x, W, b, k_of_part).values)
        bounds.append(_just_below(torch.cat(largest).topk(k * tokens).values[-1], len(b)))
    return torch.cat(bounds)


def _bound_of_all(
    model: Transcoder, parts: list[Float[Tensor, "tokens d_in"]], batch_size: int, ranks: Ranks
) -> Float[Tensor, "d_hidden"]:
    """Return the same from each process's largest; from more of them where one has more than its share."""
    bounds = []
    for W, b, k in model.group_weights():
        k_here = min(len(W), 2 * -(-k // ranks.latents.size))
        while True:
            largest = [kernels.batchtopk_encode(x, W, b, k_here).values for x in parts]
            bound = kth_largest(torch.cat(largest), k * batch_size, ranks.world)
            cut_off = k_here < len(W) and any(values.amin() > bound for values in largest)
            if not ranks.world.total(int(cut_off), W.device):
                break
            k_here = min(len(W), 2 * k_here)
        bounds.append(_just_below(bound, len(b)))
    return torch.cat(bounds)


def _just_below(bound: Tensor, latents: int) -> Tensor:
    """Return the next smaller number for each latent: selection is strict, and the bound itself is wanted."""
    return bound.nextafter(torch.zeros_like(bound)).expand(latents)
