"""The threshold that makes batchtopk choose the same from the parts of a batch as from the full batch."""

import torch
from jaxtyping import Float
from torch import Tensor

from transcoders import kernels
from transcoders.dictionary.dictionary import Dictionary
from transcoders.dictionary.transcoder import Transcoder
from transcoders.training.sharing import Processes


@torch.no_grad()
def batch_bound(
    model: Dictionary, parts: list[Float[Tensor, "tokens in"]], batch_size: int, world: Processes, slices: int
) -> list[Float[Tensor, "d_hidden"]] | None:
    """Return each source's bounds for its latents; None where the encoder needs none, or ``parts`` is the full batch.

    ``parts`` are this process's tokens of the batch of ``batch_size``; ``model`` has one of ``slices`` of the latents.
    """
    if not model.encoder.chooses_over_the_batch or (world.size == 1 and len(parts) == 1):
        return None
    inputs = zip(*(model.inputs(x) for x in parts), strict=True)
    return [_bound(source, xs, batch_size, world, slices) for source, xs in zip(model.sources, inputs, strict=True)]


def _bound(
    model: Transcoder, parts: tuple[Float[Tensor, "tokens d_in"], ...], batch_size: int, world: Processes, slices: int
) -> Float[Tensor, "d_hidden"]:
    """Return the bounds of one source.

    Twice its share of the largest is taken from each part, and more where that cuts off some above the bound.
    """
    bounds = []
    for W, b, k in model.group_weights():
        k_here = min(len(W), 2 * -(-k // slices))
        while True:
            largest = [kernels.batchtopk_encode(x, W, b, k_here).values for x in parts]
            bound = world.kth_largest(torch.cat(largest), k * batch_size)
            cut_off = k_here < len(W) and any(values.amin() > bound for values in largest)
            if not world.total(int(cut_off), W.device):
                break
            k_here = min(len(W), 2 * k_here)
        # The next smaller number, for selection is strict and the bound itself is wanted.
        bounds.append(bound.nextafter(torch.zeros_like(bound)).expand(len(b)))
    return torch.cat(bounds)
