"""The choice of each token's largest latents among those of all ranks."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from transcoders.distributed.ranks import Team


def among_largest(candidates: Float[Tensor, "tokens k"], team: Team) -> Bool[Tensor, "tokens k"]:
    """Say of each token's ``k`` candidates on this rank which are among the ``k`` largest of all ranks.

    Only these values travel: nobody needs the ids of another rank's latents.
    """
    tokens, k = candidates.shape
    everywhere = team.gathered(candidates.detach()).transpose(0, 1).reshape(tokens, -1)
    chosen = everywhere.topk(k).indices
    mask = torch.zeros(everywhere.shape, dtype=torch.bool, device=candidates.device).scatter_(1, chosen, True)
    return mask.view(tokens, team.size, k)[:, team.rank]
