"""Text sources: an iterator over (title, text) documents, in a fixed order."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from transcoders.collecting.settings import TextSettings
from transcoders.core.errors import DAMAGE, UserError


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
    for line in chain(_lines(path), ["\n"]):
        if line.strip():
            block.append(line)
        elif block:
            yield Document(f"{path.name}:{number}", "".join(block))
            block, number = [], number + 1


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise UserError(f"collect.text.path: {path} is not UTF-8 ({error}); convert it") from None


def _document(title: str, text: Any, column: str) -> Document:
    """Numbers and nulls are refused: a model would read them as the words "3" and "None"."""
    if not isinstance(text, str):
        raise UserError(f"collect.text: {column!r} of {title} is {str(text)[:50]!r}, not text; remove it or convert it")
    return Document(title, text)


def _jsonl(path: Path, column: str) -> Iterator[Document]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[column]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"collect.text: line {number} of {path} is not a JSON object with the field "
                f"{column!r}; mend the line or set collect.text.column"
            ) from error
        yield _document(f"{path.name}:{number}", text, column)


def _parquet(path: Path, column: str) -> Iterator[Document]:
    import pyarrow.parquet as pq

    number = 0
    try:
        file = pq.ParquetFile(path)
        if column not in file.schema_arrow.names:
            raise UserError(
                f"collect.text.column: {path} has no column {column!r}; it has " + ", ".join(file.schema_arrow.names)
            )
        for batch in file.iter_batches(batch_size=256, columns=[column]):
            for text in batch.column(0).to_pylist():
                yield _document(f"{path.name}:{number}", text, column)
                number += 1
    except DAMAGE as error:
        reason = " ".join(str(error).split())
        raise UserError(f"collect.text.path: {path} is not a parquet file, or not a whole one ({reason})") from error


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
            yield _document(f"{settings.path}:{number}", row[settings.column], settings.column)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"collect.text.path: could not stream {settings.path!r} from the Hugging Face Hub "
            f"({type(error).__name__}: {error}); check its id, split and your connection, or use "
            "source: wikipedia, which needs none"
        ) from error
