"""The documents of the source, or of the mix of sources, that the settings name."""

import heapq
from collections.abc import Callable, Iterator

from transcoders.collecting.settings import Source, TextSettings
from transcoders.collecting.text.document import Document
from transcoders.collecting.text.files import read_file
from transcoders.collecting.text.hub import read_hub
from transcoders.collecting.text.summaries import read_summaries
from transcoders.collecting.text.wikipedia import read_wikipedia

READERS: dict[Source, Callable[[TextSettings], Iterator[Document]]] = {
    "summaries": read_summaries,
    "wikipedia": read_wikipedia,
    "file": read_file,
    "hub": read_hub,
}


def documents(settings: TextSettings) -> Iterator[Document]:
    """Return the documents of ``settings.source``, always in the same order.

    Raises:
        UserError: a package, file or data set is missing, unreadable or lacks the column.
    """
    sources = [READERS[name](settings) for name in settings.source]
    return sources[0] if len(sources) == 1 else iter(interleaved([list(source) for source in sources]))


def interleaved(sources: list[list[Document]]) -> list[Document]:
    """Mix ``sources``, each in its order, so that any first part of the result has the same share of every one."""
    placed = [[((place + 0.5) / len(source), document) for place, document in enumerate(source)] for source in sources]
    return [document for _, document in heapq.merge(*placed, key=lambda pair: pair[0])]
