"""The rows of a store that a batch of contexts gives."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transcoders.activations import store
from transcoders.collecting.contexts import PAD, Contexts, batches
from transcoders.collecting.settings import CollectSettings
from transcoders.language.forward import forward
from transcoders.language.taps import Tap


class Rows(NamedTuple):
    """Hold x and y of the stored tokens of one batch, and where each came from."""

    x: Tensor
    y: Tensor
    labels: dict[str, Tensor]

    def arrays(self, settings: CollectSettings, where: str) -> dict[str, NDArray[Any]]:
        """Return what a store holds of the rows, by array, and y in any case: for its statistics.

        Raises:
            UserError: a value is no number, or does not fit the dtype; ``where`` names the layer.
        """
        y_dtype = settings.dtype if settings.outputs == "stored" else "float32"  # nothing rounds what is not stored
        arrays = {
            **store.to_storage("mlp_in", self.x, settings.dtype, where),
            **store.to_storage("mlp_out", self.y, y_dtype, where),
            **{name: self.labels[name].numpy().astype(np.int32) for name in store.LABELS},
        }
        if settings.max_norm is not None:
            for name, values in (("mlp_in", self.x), ("mlp_out", self.y)):
                arrays[name + store.NORM] = values.float().norm(dim=1).cpu().numpy()
        return arrays


class Batches:
    """Plan and run the batches of a collection, each of which can be run by itself."""

    def __init__(
        self, bridge: Any, taps: list[Tap], contexts: Contexts, batch_size: int, special_ids: list[int]
    ) -> None:
        """Plan to run ``contexts``, ``batch_size`` at a time; their first tokens and ``special_ids`` are not stored."""
        self.bridge, self.taps = bridge, taps
        self._contexts = contexts
        self._special = torch.tensor(special_ids, dtype=torch.long)
        self.plan = batches(contexts, batch_size)
        """Rows of ``contexts`` in each batch."""

    def run(self, number: int) -> list[Rows]:
        """Run the model on batch ``number`` and return the rows of each tapped layer."""
        labels = self._labels(self.plan[number])
        device = next(self.bridge.original_model.parameters()).device
        caught = forward(self.bridge, labels["token"].clamp_min(0).to(device), self.taps)
        stored = labels.pop("stored")
        of_rows = {name: values[stored] for name, values in labels.items()}
        return [Rows(caught[tap.hook_in][stored], caught[tap.hook_out][stored], of_rows) for tap in self.taps]

    def counts(self) -> NDArray[np.int64]:
        """Count the tokens of each batch that are stored: all but first ones, padding and special ones."""
        table = self._contexts.tokens[:, 1:]
        per_context = ((table != PAD) & ~np.isin(table, self._special.numpy())).sum(1)
        return np.array([per_context[rows].sum() for rows in self.plan], dtype=np.int64)

    def tokens(self, number: int) -> int:
        """Count the tokens of batch ``number``, the first of each context excepted."""
        rows = self.plan[number]
        return int((self._contexts.tokens[rows] != PAD).sum()) - len(rows)

    @property
    def capacity(self) -> int:
        """Return the most rows that a store may need."""
        return int((self._contexts.tokens != PAD).sum()) - len(self._contexts.tokens)

    def _labels(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return per position [contexts, length]: token, document, position, context, and whether it is stored."""
        table = self._contexts.tokens[rows]
        token = torch.from_numpy(table[:, : int((table != PAD).sum(1).max())]).long()
        shape = token.shape
        position = torch.arange(shape[1]).expand(shape)
        return {
            "token": token,
            "document": torch.from_numpy(self._contexts.document[rows]).long()[:, None].expand(shape),
            "position": position,
            "context": torch.from_numpy(rows)[:, None].expand(shape),
            "stored": (position > 0) & (token != PAD) & ~torch.isin(token, self._special),
        }
