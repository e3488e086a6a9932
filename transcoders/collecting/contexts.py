"""Cutting documents into contexts that a model reads: a start such as BOS, then tokens of one document only."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transcoders.collecting.text import Document
from transcoders.core.errors import UserError
from transcoders.language.tokens import text_ids

PAD = -1
SMALLEST_POOL = 1_000_000
"""Tokens of text that are read in any case: reading them takes seconds and mixes documents."""


class Contexts(NamedTuple):
    """Contexts in the order in which they are read, and the documents they come from."""

    tokens: NDArray[np.int32]
    """[contexts, context_length], the start first, ``PAD`` after the end."""
    document: NDArray[np.int32]
    """[contexts], row of ``documents``."""
    documents: pd.DataFrame
    """One row a document: title, source, topic, tokens used."""

    def used_documents(self) -> int:
        """Count the documents of which any token is used."""
        return int((self.documents["tokens"] > 0).sum())


def make_contexts(
    source: Iterable[Document],
    tokenizer: Any,
    *,
    start: list[int],
    tokens: int,
    context_length: int,
    pool: float,
    seed: int,
) -> Contexts:
    """Tokenise, cut, shuffle and keep exactly ``tokens`` tokens (the first of a context not counted).

    Contexts begin with ``start``, which may be empty: then their first token is the text's.

    Documents are read until there are ``pool * tokens`` tokens or the text ends; their contexts
    are then shuffled across documents, so that neighbours in the store are unrelated.

    Raises:
        UserError: the text has fewer tokens than asked.
    """
    rows: list[list[int]] = []
    owner: list[int] = []
    labels: list[tuple[str, str, str]] = []
    read: Counter[str] = Counter()
    body = context_length - len(start)
    for document in source:
        ids = text_ids(tokenizer, document.text)
        cut = [[*start, *ids[first : first + body]] for first in range(0, len(ids), body)]
        cut = [row for row in cut if len(row) > 1]
        rows += cut
        owner += [len(labels)] * len(cut)
        labels.append((document.title, document.source, document.topic))
        read[document.source] += sum(len(row) - 1 for row in cut)
        if read.total() >= max(pool * tokens, SMALLEST_POOL):
            break
    if read.total() < tokens:
        each = f" ({', '.join(f'{source}: {count}' for source, count in read.items())})" if len(read) > 1 else ""
        raise UserError(
            f"collect.tokens: {tokens} tokens were asked for, but the text has only {read.total()}{each}; "
            f"lower collect.tokens to {read.total()} or less, or give more text (collect.text)"
        )
    order = np.random.default_rng(seed).permutation(len(rows))
    table = np.full((len(rows), context_length), PAD, dtype=np.int32)
    left = tokens
    for used, row in enumerate(order):
        kept = rows[row][: left + 1]
        table[used, : len(kept)] = kept
        left -= len(kept) - 1
        if left == 0:
            break
    table = table[: used + 1]
    document_of = np.asarray(owner, dtype=np.int32)[order[: used + 1]]
    counts = np.bincount(document_of, (table != PAD).sum(1) - 1, minlength=len(labels))
    frame = pd.DataFrame(labels, columns=["title", "source", "topic"]).assign(tokens=counts.astype(np.int64))
    return Contexts(table, document_of, frame)


def batches(contexts: Contexts, batch_size: int, window: int = 64) -> list[NDArray[np.int64]]:
    """Rows of ``contexts`` to run together: sorted by length within a window, so little is padding."""
    lengths = (contexts.tokens != PAD).sum(1)
    result = []
    for start in range(0, len(lengths), batch_size * window):
        part = np.arange(start, min(start + batch_size * window, len(lengths)))
        part = part[np.argsort(-lengths[part], kind="stable")]
        result += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    return result
