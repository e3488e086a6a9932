"""The table of word classes, and which stored tokens are words of them.

words.csv was made by hand for closed classes, and from WordNet 3.0 (LICENSE-WordNet) for open ones: lower-case nouns
that are no verb, adjective or adverb and all of whose senses lie beneath one synset, names of places all of whose
senses do, and verbs, adjectives and adverbs by their endings. A word stands in one class.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

TABLE = Path(__file__).with_name("words.csv")
SPACES = ("▁", "Ġ", " ")
"""What a token begins with in a vocabulary where it begins a word."""
NO_WORD = -1


class Words(NamedTuple):
    """Hold the words that occur often enough, and where they do."""

    texts: list[str]
    at: NDArray[np.int64]
    """[tokens]: number of the word that a token is, or ``NO_WORD``."""
    counts: NDArray[np.int64]
    """[words]: tokens of each."""


def read_table(path: Path = TABLE) -> dict[str, list[str]]:
    """Return the words of each class."""
    with path.open(encoding="utf-8", newline="") as file:
        return {row["class"]: row["words"].split() for row in csv.DictReader(file)}


def find_words(
    tokens: NDArray[np.integer[Any]], documents: NDArray[np.integer[Any]], tokenizer: Any, occurrences: int
) -> Words:
    """Return the words that at least so many of ``tokens`` are, which are in the order of the text.

    A token is a word if it begins one, holds letters alone, and the next token of the document does not go on with
    letters. Case matters: *may* is no *May*.
    """
    ids, of_token = np.unique(tokens, return_inverse=True)
    pieces = [str(piece) for piece in tokenizer.convert_ids_to_tokens(ids.tolist())]
    begins = np.array([piece[:1] in SPACES and piece[1:].isalpha() for piece in pieces], bool)[of_token]
    goes_on = np.array([piece[:1].isalpha() for piece in pieces], bool)[of_token]
    alone = begins.copy()
    alone[:-1] &= ~(goes_on[1:] & (documents[1:] == documents[:-1]))
    counts = np.bincount(of_token[alone], minlength=len(ids))
    frequent = np.flatnonzero(counts >= occurrences)
    number = np.full(len(ids), NO_WORD)
    number[frequent] = np.arange(len(frequent))
    return Words([pieces[i][1:] for i in frequent], np.where(alone, number[of_token], NO_WORD), counts[frequent])


def classes_among(words: Words, table: Mapping[str, list[str]], members: int) -> dict[str, NDArray[np.int64]]:
    """Return the numbers of the words of each class of ``table`` that has at least so many ``members`` among them."""
    numbers = {text: number for number, text in enumerate(words.texts)}
    known = {name: np.array([numbers[text] for text in of if text in numbers]) for name, of in table.items()}
    return {name: of for name, of in known.items() if len(of) >= members}
