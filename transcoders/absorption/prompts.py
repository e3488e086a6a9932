"""The words of an absorption task with their categories, and prompts that name the category after each word.

Of first letters (arXiv 2409.14507) the vocabulary's words are the task; of hypernyms the nouns of the table of word
classes all of whose senses WordNet places beneath one synset.
"""

import re
import string
from typing import Any, NamedTuple

import numpy as np

from transcoders.absorption.settings import AbsorptionSettings
from transcoders.classes.words import SPACES, read_table
from transcoders.core.errors import UserError
from transcoders.language.tokens import text_ids

LETTERS = tuple(string.ascii_lowercase)
HYPERNYMS = (
    "person",
    "animal",
    "plant",
    "food",
    "body part",
    "clothing",
    "vehicle",
    "building",
    "device",
    "chemical element",
    "disease",
    "period of time",
    "field of study",
    "feeling",
    "document",
    "region",
    "group of people",
    "unit of measurement",
    "compound",
    "property",
    "process",
    "event",
    "act",
    "artwork",
    "country",
    "city",
)
"""Those word classes that are a noun's hypernym: the others are parts of speech, endings, or have few words."""
EXAMPLES = 4
WORDS_PER_PROMPT = 28
FEWEST = 10
"""Words of a category, in either part of the split: with fewer, no probe is fitted."""


class Word(NamedTuple):
    """Hold a token that is a space and a word, and the category that the task places the word in."""

    token: int
    text: str
    category: str


def categories_of(task: str) -> tuple[str, ...]:
    """Return all categories of a task."""
    return {"letters": LETTERS, "hypernyms": HYPERNYMS}[task]


def words_of_task(tokenizer: Any, settings: AbsorptionSettings) -> list[Word]:
    """Return the task's words among the vocabulary's single tokens, at most ``settings.words``, in its order.

    Raises:
        UserError: the vocabulary has next to none.
    """
    hypernym = {word: name for name, words in read_table().items() if name in HYPERNYMS for word in words}
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    words = []
    for number, piece in enumerate(pieces):
        if piece is None or piece[:1] not in SPACES:
            continue
        text = piece[1:]
        if settings.task == "hypernyms" and text in hypernym:
            words.append(Word(number, text, hypernym[text]))
        elif settings.task == "letters" and re.fullmatch("[a-z]{3,}", text):
            words.append(Word(number, text, text[0]))
    if len(words) < WORDS_PER_PROMPT * FEWEST:
        raise UserError(
            f"model.name: absorption.task {settings.task} needs words that are one token, and this vocabulary of "
            f"{len(pieces)} has {len(words)}; choose a model with a word-piece or BPE vocabulary, or leave the task "
            "out with absorption.words: 0"
        )
    return words[: settings.words]


def task_prompts(
    words: list[Word], tokenizer: Any, seed: int, start: list[int], longest: int | None
) -> list[tuple[list[int], list[int]]]:
    """Return token ids of prompts that name the category of all ``words``, and the positions of the words in each.

    ``BOS w1: W\\n w2: W\\n ...``, or ``BOS w1: animal\\n ...``: the prompt before a word is its examples, so one pass
    reads many words. The first ``EXAMPLES`` of a prompt are drawn at random and not read. In place of BOS stands
    ``start``; prompts have at most ``longest`` tokens.

    Raises:
        UserError: that is too few for one word and its examples.
    """
    rng = np.random.default_rng(seed)
    answers = {
        category: text_ids(tokenizer, f": {category.upper() if category in LETTERS else category}\n")
        for category in {word.category for word in words}
    }
    size = WORDS_PER_PROMPT
    if longest is not None:
        size = min(size, (longest - len(start)) // (1 + max(map(len, answers.values()))) - EXAMPLES)
    if size < 1:
        raise UserError(
            f"model.name: the absorption task needs prompts of {EXAMPLES + 1} words, and the model has {longest} "
            "positions; leave the task out with absorption.words: 0"
        )
    result = []
    for first in range(0, len(words), size):
        examples = [words[i] for i in rng.integers(len(words), size=EXAMPLES)]
        ids, positions = [*start], []
        for word in examples + words[first : first + size]:
            positions.append(len(ids))
            ids += [word.token, *answers[word.category]]
        result.append((ids[: positions[-1] + 1], positions[EXAMPLES:]))
    return result
