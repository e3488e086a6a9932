"""Opening what many stages read: a layer's activations, the split, and the test documents for an evaluation."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stages.common.paths import CONTEXTS, MODEL, SPLIT, store_of
from transcoders.activations.reader import LabelledBatch, ordered_batches
from transcoders.activations.recompute import open_store
from transcoders.activations.split import PARTS, documents_of
from transcoders.activations.store import Store
from transcoders.core.files import sha256_of
from transcoders.core.tables import read_parquet

MOMENT_TOKENS = 200_000
"""Training tokens that baselines are fitted to, and that scales are measured on beside a run's own."""


class Inputs(NamedTuple):
    """A layer's activations, and who may see which documents."""

    store: Store
    documents: dict[str, NDArray[np.bool_]]
    """Mask over document ids for each of train, validation, test."""
    split_hash: str

    @property
    def provenance(self) -> dict[str, str]:
        """What a file of metrics says of the data that it rests on."""
        return {"split_hash": self.split_hash, "model_hash": self.store.attributes["model_hash"][:16]}

    def train_batches(self, tokens: int, device: torch.device) -> list[LabelledBatch]:
        """Return the first ``tokens`` tokens of the training documents, in the order of the store."""
        return list(ordered_batches(self.store, self.documents["train"], tokens, device))


def open_inputs(layer: int, device: torch.device) -> Inputs:
    """Open the activation store of ``layer``, which recomputes what it lacks on ``device``, and the split."""
    split = read_parquet(SPLIT, "split", ["split"])
    return Inputs(
        open_store(store_of(layer), MODEL, device),
        {part: documents_of(split, part) for part in PARTS},
        sha256_of(SPLIT)[:16],
    )


def contexts_of_test_documents(inputs: Inputs) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Return the tokens of the test documents' contexts, and the document of each."""
    contexts = read_parquet(CONTEXTS, "collect", ["document", "tokens"])
    contexts = contexts[inputs.documents["test"][contexts["document"]]]
    return list(contexts["tokens"]), np.asarray(contexts["document"])
