"""Text from a file of the user's: documents separated by empty lines, JSON lines, or a parquet table."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from transcoders.collecting.settings import TextSettings
from transcoders.collecting.text.document import Document, checked_document
from transcoders.core.errors import DAMAGE, UserError


def read_file(settings: TextSettings) -> Iterator[Document]:
    """Return the documents of the file ``settings.path``; each is named by the file and its number in it.

    Raises:
        UserError: there is no such file, it is of no known kind, or is damaged.
    """
    path = Path(str(settings.path))
    if not path.is_file():
        raise UserError(f"collect.text.path: there is no file {settings.path!r}")
    readers = {".txt": _plain, ".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix not in readers:
        raise UserError(f"collect.text.path: {settings.path!r} is none of {', '.join(readers)}; convert it")
    return readers[path.suffix](path, settings.column)


def _plain(path: Path, _column: str) -> Iterator[Document]:
    block: list[str] = []
    number = 0
    for line in chain(_lines(path), ["\n"]):
        if line.strip():
            block.append(line)
        elif block:
            yield Document(f"{path.name}:{number}", "".join(block), "file")
            block, number = [], number + 1


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:  # editors on Windows begin a file with a byte-order mark
            yield from file
    except UnicodeDecodeError as error:
        raise UserError(f"collect.text.path: {path} is not UTF-8 ({error}); convert it") from None


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
        yield checked_document(f"{path.name}:{number}", text, column, "file")


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
                yield checked_document(f"{path.name}:{number}", text, column, "file")
                number += 1
    except DAMAGE as error:
        reason = " ".join(str(error).split())
        raise UserError(f"collect.text.path: {path} is not a parquet file, or not a whole one ({reason})") from error
