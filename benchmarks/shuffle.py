"""How well the reader mixes documents, and how long training waits for it."""

import time

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quality import Task
from transcoders.activations.reader import ShuffledReader
from transcoders.training.settings import TrainSettings

BUFFERS = (16_384, 131_072, 10**9)


def run(task: Task) -> list[str]:
    """Return the rows: buffer, same-document pairs in a batch over those of an ideal shuffle, tokens/s of reading."""
    rows = []
    batch_size = TrainSettings().batch_size
    owner = task.store.labels("document", 0, task.store.tokens)
    trained = owner[task.documents["train"][owner]]
    ideal = _same_pairs(np.random.default_rng(0).permutation(trained), batch_size)
    for buffer in BUFFERS:
        reader = ShuffledReader(
            task.store, task.documents["train"], batch_size=batch_size, buffer_tokens=buffer, seed=0, device=task.device
        )
        began = time.perf_counter()
        for _ in zip(range(reader.batches_per_epoch), reader.batches(), strict=False):
            pass
        rate = reader.batches_per_epoch * batch_size / (time.perf_counter() - began)
        order = _documents_in_order(reader, owner, task.documents["train"])
        name = "everything" if buffer >= task.store.tokens else f"{buffer}"
        rows.append(f"| {name} | {_same_pairs(order, batch_size) / ideal:.2f} | {rate:,.0f} |")
    return rows


def _documents_in_order(
    reader: ShuffledReader, owner: NDArray[np.int32], wanted: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """Return the document of each token of the first epoch, in the order that the reader gives them."""
    parts = []
    for number, chunks in enumerate(reader._loads(0)):
        rows = np.concatenate([np.arange(*reader._chunks[index]) for index in chunks])
        documents = owner[rows][wanted[owner[rows]]]
        order = np.random.default_rng([reader._seed, 0, number]).permutation(len(documents))
        parts.append(documents[order])
    return np.concatenate(parts)


def _same_pairs(documents: NDArray[np.int32], batch_size: int) -> float:
    """Return the number of pairs of tokens of one document within a batch, as a mean over batches."""
    count = len(documents) // batch_size
    batches = torch.from_numpy(documents[: count * batch_size].astype(np.int64)).view(count, batch_size)
    return float(np.mean([(np.bincount(batch) * (np.bincount(batch) - 1)).sum() / 2 for batch in batches.numpy()]))
