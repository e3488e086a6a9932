"""Whole articles of English Wikipedia (CC BY-SA), from the gensim package."""

import bz2
import re
from collections.abc import Iterator

from transcoders.collecting.settings import TextSettings
from transcoders.collecting.text.document import Document

DUMP = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
PARAGRAPH = re.compile(r"(?![=*#:;!+ ]|__|File:|Image:)[^|]*[.!?][\"')]*")
"""Ends as a sentence does. What gensim leaves beside paragraphs are headings, lists, cells of tables and captions."""
LEFTOVERS = (
    (re.compile(r"'{2,}"), ""),  # italics and bold
    (re.compile(r"\([\s,;:]+"), "("),  # of a pronunciation or a name in another script, which was a template
    (re.compile(r"[\s,;:]+\)"), ")"),
    (re.compile(r"\(\)"), ""),
    (re.compile(r"[ \t]+([,.;:])(?=\s|$)"), r"\1"),
    (re.compile(r"[ \t]{2,}"), " "),
)


def read_wikipedia(_settings: TextSettings) -> Iterator[Document]:
    """Yield the paragraphs of 106 articles, without headings, lists, tables and markup."""
    from gensim.corpora.wikicorpus import extract_pages, filter_wiki
    from gensim.test.utils import datapath

    with bz2.open(datapath(DUMP), "rb") as dump:
        for title, raw, _ in extract_pages(dump, filter_namespaces=("0",)):
            text = prose(filter_wiki(raw, promote_remaining=True, simplify_links=True))
            if not raw.lstrip().upper().startswith("#REDIRECT") and text:
                yield Document(title, text, "wikipedia")


def prose(markup: str) -> str:
    """Return the paragraphs of what gensim's ``filter_wiki`` leaves of an article, with an empty line between."""
    paragraphs = []
    for line in markup.splitlines():
        for pattern, replacement in LEFTOVERS:
            line = pattern.sub(replacement, line)
        if PARAGRAPH.fullmatch(line.rstrip()):
            paragraphs.append(line.rstrip())
    return "\n\n".join(paragraphs)
