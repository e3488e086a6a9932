"""What a cross-layer transcoder needs of memory, found out before training starts."""

import psutil  # type: ignore[import-untyped]
import torch

from transcoders.core.errors import UserError
from transcoders.dictionary.crosslayer.config import CrossLayerConfig

BYTES_PER_WEIGHT = 4 * 5
"""Float32: the weight, its gradient, Adam's two moments, and the copy of the best."""
BYTES_PER_SAMPLED = 4 * 6
"""Of each number of the sample that latents start from: x and y, raw, in the weights' units, and in between."""
BYTES_PER_OUTPUT = 4 * 6
"""Of each number of a batch's rows, for every prefix at most: x, y, and what is left at each prefix."""


def bytes_needed(config: CrossLayerConfig, batch_size: int, sample_tokens: int) -> int:
    """Return about how many bytes training takes at its most, the reader's buffers left out."""
    d, prefixes = config.d_model, max(1, len(config.prefixes))
    targets = sum(len(config.targets(number)) for number in range(len(config.layers)))
    weights = config.d_hidden * d * (targets + len(config.layers))
    rows = batch_size * config.width * prefixes
    return weights * BYTES_PER_WEIGHT + max(sample_tokens * config.width * BYTES_PER_SAMPLED, rows * BYTES_PER_OUTPUT)


def check_memory(config: CrossLayerConfig, batch_size: int, sample_tokens: int, device: torch.device) -> None:
    """Make sure that ``device`` has room for training.

    Raises:
        UserError: it has not, and the line says how much is needed and free.
    """
    needed = bytes_needed(config, batch_size, sample_tokens)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"train.d_hidden: {config.d_hidden} latents of each of {len(config.layers)} layers need about "
            f"{needed / 1e9:.1f} GB to train, and {free / 1e9:.1f} GB of memory are free; lower it, take fewer layers "
            "(clt.spans), or a smaller reach"
        )
