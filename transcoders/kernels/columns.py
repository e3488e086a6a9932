"""The entries of sparse latents by latent instead of by token."""

from collections.abc import Callable, MutableMapping
from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


class Columns(NamedTuple):
    """Hold the entries of a CSR in the order of latents (and of tokens within a latent)."""

    offsets: Int[Tensor, "d_hidden_plus_1"]
    order: Int[Tensor, "nnz"]  # position in the CSR


_columns_of: MutableMapping[Tensor, Columns] = WeakIdKeyDictionary()


def columns_of(indices: Tensor, d_hidden: int, transpose: Callable[[Tensor, int], Columns]) -> Columns:
    """Return `transpose(indices, d_hidden)`, computed once for the decoder's and the encoder's gradients.

    The result lives as long as the indices do.
    """
    if indices not in _columns_of:
        _columns_of[indices] = transpose(indices, d_hidden)
    return _columns_of[indices]
