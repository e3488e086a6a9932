"""Reading a store context by context, so that every token is seen among its neighbours."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from transcoders.activations.store import CHUNK_ROWS, LABELS, Store


class Block(NamedTuple):
    """Hold complete contexts, in store order: the MLP inputs of their tokens, and what these are."""

    x: Float[Tensor, "tokens d"]
    token: NDArray[np.int32]
    document: NDArray[np.int32]
    context: NDArray[np.int32]

    @property
    def place(self) -> NDArray[np.int64]:
        """Return each token's number within its context."""
        starts = np.flatnonzero(np.diff(self.context, prepend=-1))
        return np.arange(len(self.context)) - np.repeat(starts, np.diff(starts, append=len(self.context)))


def complete_contexts(store: Store, limit: int, device: torch.device) -> Iterator[Block]:
    """Yield the first ``limit`` tokens of the store, about a chunk at a time; no context is cut in two.

    Contexts were shuffled when they were collected, so the first tokens are a fair sample.
    """
    stop_at = min(limit, store.tokens)
    rest = [torch.empty(0, store.d_model, dtype=store.rows("mlp_in", 0, 0).dtype)]
    labels = {name: [np.empty(0, np.int32)] for name in LABELS}
    for start in range(0, stop_at, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, stop_at)
        x = torch.cat([*rest, store.rows("mlp_in", start, stop)])
        read = {name: np.concatenate([*parts, store.labels(name, start, stop)]) for name, parts in labels.items()}
        last = read["context"] == read["context"][-1]
        cut = len(x) if stop == stop_at else int(last.argmax())
        if cut:
            yield Block(x[:cut].to(device).float(), *(read[name][:cut] for name in ("token", "document", "context")))
        rest, labels = [x[cut:]], {name: [values[cut:]] for name, values in read.items()}
