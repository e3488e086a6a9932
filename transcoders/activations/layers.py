"""Reading the stores of several layers together: the same tokens in the same order, all layers side by side."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from transcoders.activations.reader import Batch, ShuffledReader, ordered_batches
from transcoders.activations.store import SHARD_ROWS, Store
from transcoders.core.errors import UserError

SHARED = ("model_hash", "text", "context_length", "context_start", "tokens", "left_out")
"""Attributes in which the stores of one text agree."""


class LayersBatch(NamedTuple):
    """Hold some tokens in store order, with all layers side by side, and each token's document."""

    x: Float[Tensor, "tokens layers*d"]
    y: Float[Tensor, "tokens layers*d"]
    document: NDArray[np.int32]


def check_alike(stores: Sequence[Store]) -> None:
    """Make sure that row for row all ``stores`` hold the same tokens.

    Raises:
        UserError: they were collected from different text or models, or in another way.
    """
    first, *others = stores
    for store in others:
        differing = [name for name in SHARED if store.attributes.get(name) != first.attributes.get(name)]
        differing += [] if differing else [name for name in ("document", "token") if _differ(first, store, name)]
        if differing:
            layers = f"layers {first.attributes['layer']} and {store.attributes['layer']}"
            raise UserError(
                f"collect.layers: the activations of {layers} are not of the same tokens ({', '.join(differing)} "
                "differ); run `dvc repro --force collect`, which collects all layers together"
            )


def _differ(first: Store, other: Store, name: str) -> bool:
    for start in range(0, first.tokens, SHARD_ROWS):
        stop = min(start + SHARD_ROWS, first.tokens)
        if not np.array_equal(first.labels(name, start, stop), other.labels(name, start, stop)):
            return True
    return False


def ordered_layers(
    stores: Sequence[Store], documents: NDArray[np.bool_], limit: int, device: torch.device
) -> Iterator[LayersBatch]:
    """Yield at most ``limit`` tokens of the chosen documents, a chunk a batch, in the order of the stores."""
    readers = [ordered_batches(store, documents, limit, device) for store in stores]
    for batches in zip(*readers, strict=True):
        x, y = (torch.cat(parts, 1) for parts in zip(*((batch.x, batch.y) for batch in batches), strict=True))
        yield LayersBatch(x, y, batches[0].document)


class LayersReader:
    """Read shuffled batches of several layers' stores, which ``check_alike`` has seen.

    With one seed, each layer's reader gives the same tokens in the same order.
    """

    def __init__(self, readers: Sequence[ShuffledReader]) -> None:
        """Join readers that differ in their store alone."""
        self._readers = readers
        self.tokens, self.batches_per_epoch = readers[0].tokens, readers[0].batches_per_epoch

    @property
    def seconds_waited(self) -> float:
        """Return the time that was spent waiting for data."""
        return sum(reader.seconds_waited for reader in self._readers)

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yield batch number ``first`` (counted over epochs) and all after it."""
        for batches in zip(*(reader.batches(first) for reader in self._readers), strict=True):
            yield Batch(*(torch.cat(parts, 1) for parts in zip(*batches, strict=True)))
