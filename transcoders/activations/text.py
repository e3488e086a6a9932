"""Text sources: an iterator over (title, text) documents, in a fixed order."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from transcoders.activations.settings import TextSettings
from transcoders.errors import UserError


class Document(NamedTuple):
    """One document. Its title identifies it (the split hashes it), so titles are unique."""

    title: str
    text: str


def documents(settings: TextSettings) -> Iterator[Document]:
    """Yield the documents of the source that ``settings`` names.

    Raises:
        UserError: the file or data set is missing, unreadable or lacks the column.
    """
    if settings.source == "wikipedia":
        return _wikipedia()
    if settings.path is None:
        raise UserError(f"collect.text.path: is missing; collect.text.source {settings.source!r} needs it")
    if settings.source == "hub":
        return _hub(settings)
    path = Path(settings.path)
    if not path.is_file():
        raise UserError(f"collect.text.path: there is no file {settings.path!r}")
    readers = {".txt": _plain, ".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix not in readers:
        raise UserError(f"collect.text.path: {settings.path!r} is none of {', '.join(readers)}; convert it")
    return readers[path.suffix](path, settings.column)


def _wikipedia() -> Iterator[Document]:
    """107 whole English Wikipedia articles (CC BY-SA) that the gensim package ships."""
    import bz2

    from gensim.corpora.wikicorpus import extract_pages, filter_wiki
    from gensim.test.utils import datapath

    path = datapath("enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2")
    with bz2.open(path, "rb") as dump:
        for title, raw, _ in extract_pages(dump, filter_namespaces=("0",)):
            text = filter_wiki(raw, promote_remaining=True, simplify_links=True).strip()
            if not raw.lstrip().upper().startswith("#REDIRECT") and text:
                yield Document(title, text)


def _plain(path: Path, _column: str) -> Iterator[Document]:
    block: list[str] = []
    number = 0
    with path.open(encoding="utf-8") as file:
        for line in chain(file, ["\n"]):
            if line.strip():
                block.append(line)
            elif block:
                yield Document(f"{path.name}:{number}", "".join(block))
                block, number = [], number + 1


def _jsonl(path: Path, column: str) -> Iterator[Document]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)[column]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise UserError(
                    f"collect.text: line {number} of {path} is not a JSON object with the field "
                    f"{column!r}; mend the line or set collect.text.column"
                ) from error
            yield Document(f"{path.name}:{number}", str(text))


def _parquet(path: Path, column: str) -> Iterator[Document]:
    import pyarrow.lib
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pyarrow.lib.ArrowInvalid as error:
        raise UserError(f"collect.text.path: {path} is not a parquet file ({error})") from error
    if column not in file.schema_arrow.names:
        raise UserError(
            f"collect.text.column: {path} has no column {column!r}; it has " + ", ".join(file.schema_arrow.names)
        )
    number = 0
    for batch in file.iter_batches(batch_size=256, columns=[column]):
        for text in batch.column(0).to_pylist():
            yield Document(f"{path.name}:{number}", text)
            number += 1


def _hub(settings: TextSettings) -> Iterator[Document]:
    from datasets import load_dataset
    from huggingface_hub.errors import HfHubHTTPError

    try:
        rows = load_dataset(
            settings.path,
            settings.subset,
            split=settings.split,
            revision=settings.revision,
            streaming=True,
        )
        for number, row in enumerate(rows):
            if settings.column not in row:
                raise UserError(
                    f"collect.text.column: {settings.path!r} has no column {settings.column!r}; it has {', '.join(row)}"
                )
            yield Document(f"{settings.path}:{number}", row[settings.column])
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"collect.text.path: could not stream {settings.path!r} from the Hugging Face Hub "
            f"({type(error).__name__}: {error}); check its id, split and your connection, or use "
            "source: wikipedia, which needs none"
        ) from error
