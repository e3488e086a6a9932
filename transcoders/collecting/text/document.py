"""What every source of text yields."""

from typing import Any, NamedTuple

from transcoders.core.errors import UserError


class Document(NamedTuple):
    """One document.

    The split goes by the title, so titles are unique within a source; where two sources have one title, they
    write of one subject and fall into the same part.
    """

    title: str
    text: str
    source: str
    topic: str = ""
    """Empty where the source knows none."""


def checked_document(title: str, text: Any, column: str, source: str) -> Document:
    """Return the document whose text is ``text``, the value that a file or data set has in ``column``.

    Raises:
        UserError: it is no string (a model would read a number or a null as the words "3" and "None"), or has
            half a character, which no tokenizer takes.
    """
    if not isinstance(text, str):
        raise UserError(f"collect.text: {column!r} of {title} is {str(text)[:50]!r}, not text; remove it or convert it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"collect.text: {column!r} of {title} has half a character, {text[error.start]!a}, after {error.start} "
            "others; mend or remove it (JSON writes such a character as both its halves: \\ud83d\\ude00)"
        ) from None
    return Document(title, text, source)
