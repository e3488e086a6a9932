"""A store as it would be if the families' features were in the model: they are added while rows are read."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from transcoders.activations.store import ACTIVATIONS, Store
from transcoders.core.errors import UserError
from transcoders.core.places import Place
from transcoders.planted.families import Families

IN, OUT = ACTIVATIONS


class PlantedStore(Store):
    """The rows of the store at ``path`` with ``families`` added to x and y, in float32; nothing is written."""

    def __init__(self, path: Place, families: Families, settings: dict[str, Any], draw: int = 0) -> None:
        """Open the store; ``settings``, which its attributes then hold, say what was planted.

        Raises:
            UserError: the store holds x alone: the model's MLP does not know the features.
        """
        super().__init__(path)
        if OUT not in self.held:
            raise UserError(
                f"{self.path}: holds x alone (collect.outputs: recomputed), and the MLP would not make y of planted "
                "features; collect with collect.outputs: stored"
            )
        self.families, self.draw = families, draw
        self.dtype = torch.float32
        self.attributes |= {"planted": settings, "planted_draw": draw}

    def rows(self, name: str, start: int, stop: int) -> Float[Tensor, "tokens d"]:
        """Return ``mlp_in`` or ``mlp_out`` of rows [start, stop) with the features that fire there, in float32."""
        return self._planted(name, np.arange(start, stop), super().rows(name, start, stop))

    def chosen(self, name: str, start: int, stop: int, rows: NDArray[np.int64]) -> Float[Tensor, "tokens d"]:
        """Return the same of those ``rows`` of [start, stop) alone, which takes as much less time as they are fewer."""
        return self._planted(name, rows, super().rows(name, start, stop)[torch.from_numpy(rows - start)])

    def _planted(self, name: str, rows: NDArray[np.int64], values: Tensor) -> Float[Tensor, "tokens d"]:
        written = self.families.x if name == IN else self.families.y
        firings = self.families.firings(rows, self.draw)
        return values.float().index_add_(0, firings.row, firings.written(written))
