"""The first-letter task (arXiv 2409.14507): words, what an MLP makes of them, and probes for the letter."""

import json
import re
import string
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from transcoders.absorption.settings import AbsorptionSettings
from transcoders.core.errors import DAMAGE, UserError
from transcoders.core.tensors import save_tensors
from transcoders.language.forward import forward
from transcoders.language.taps import Tap
from transcoders.language.tokens import positions_of, text_ids

LETTERS = string.ascii_lowercase
EXAMPLES = 4
WORDS_PER_PROMPT = 28
PROMPTS_PER_BATCH = 16
FEWEST = 10
"""Words that begin with a letter, in either part of the split: with fewer, no probe is fitted."""
PROBE_C = 1.0  # lower F1 with 10, and with balanced class weights at 0.02 and 0.1


class Word(NamedTuple):
    """Hold a token that is a space and a word."""

    token: int
    text: str


class Task(NamedTuple):
    """Hold words, their MLP inputs and outputs (raw units), and a mask of those for testing."""

    words: list[str]
    x: Float[Tensor, "words d_in"]
    y: Float[Tensor, "words d_out"]
    test: Bool[Tensor, "words"]

    @property
    def initials(self) -> NDArray[np.str_]:
        """Return the first letter of each word."""
        return np.array([word[0] for word in self.words])


class Probes(NamedTuple):
    """Hold a linear probe on y for each letter that had words enough, whatever its quality."""

    letters: list[str]
    direction: Float[Tensor, "letters d_out"]
    """Unit vectors."""
    right: Bool[Tensor, "letters words"]
    """Where the probe says that the word begins with the letter, and it does."""
    f1: Float[Tensor, "letters"]
    """On the test words."""


NO_TASK = (
    Task([], torch.zeros(0, 0), torch.zeros(0, 0), torch.zeros(0, dtype=torch.bool)),
    Probes([], torch.zeros(0, 0), torch.zeros(0, 0, dtype=torch.bool), torch.zeros(0)),
)
"""What stands in the file where the task is left out."""


def single_token_words(tokenizer: Any, count: int) -> list[Word]:
    """Return the first ``count`` tokens that are a space and three or more lower-case ASCII letters.

    Raises:
        UserError: the vocabulary has next to none.
    """
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    words = [
        Word(number, piece[1:])
        for number, piece in enumerate(pieces)
        if piece is not None and re.fullmatch("[▁Ġ ][a-z]{3,}", piece)
    ]
    if len(words) < WORDS_PER_PROMPT * FEWEST:
        raise UserError(
            f"model.name: the first-letter task needs words that are one token, and this vocabulary of {len(pieces)} "
            f"has {len(words)}; choose a model with a word-piece or BPE vocabulary, or leave the task out with "
            "absorption.words: 0"
        )
    return words[:count]


def spelling_prompts(
    words: list[Word], tokenizer: Any, seed: int, start: list[int], longest: int | None
) -> list[tuple[list[int], list[int]]]:
    """Return token ids of prompts that spell all ``words``, and the positions of the words in each.

    ``BOS w1: W\\n w2: W\\n ...``: the prompt before a word is its examples, so one pass reads
    many words. The first ``EXAMPLES`` of a prompt are drawn at random and not read. In place of BOS stands
    ``start``; prompts have at most ``longest`` tokens.

    Raises:
        UserError: that is too few for one word and its examples.
    """
    rng = np.random.default_rng(seed)
    answers = {letter: text_ids(tokenizer, f": {letter.upper()}\n") for letter in LETTERS}
    size = WORDS_PER_PROMPT
    if longest is not None:
        size = min(size, (longest - len(start)) // (1 + max(map(len, answers.values()))) - EXAMPLES)
    if size < 1:
        raise UserError(
            f"model.name: the first-letter task needs prompts of {EXAMPLES + 1} words, and the model has {longest} "
            "positions; leave the task out with absorption.words: 0"
        )
    result = []
    for first in range(0, len(words), size):
        examples = [words[i] for i in rng.integers(len(words), size=EXAMPLES)]
        ids, positions = [*start], []
        for word in examples + words[first : first + size]:
            positions.append(len(ids))
            ids += [word.token, *answers[word.text[0]]]
        result.append((ids[: positions[-1] + 1], positions[EXAMPLES:]))
    return result


@torch.inference_mode()
def read_words(bridge: Any, tap: Tap, tokenizer: Any, start: list[int], settings: AbsorptionSettings) -> Task:
    """Run the model over spelling prompts, which begin with ``start``, and read x and y at each word."""
    words = single_token_words(tokenizer, settings.words)
    rng = np.random.default_rng(settings.seed)
    words = [words[i] for i in rng.permutation(len(words))]
    device = next(bridge.original_model.parameters()).device
    prompts = spelling_prompts(words, tokenizer, settings.seed, start, positions_of(bridge.original_model))
    activations: dict[str, list[Tensor]] = {tap.hook_in: [], tap.hook_out: []}
    with tqdm(desc="words", total=len(words), unit="word") as bar:
        for first in range(0, len(prompts), PROMPTS_PER_BATCH):
            batch = prompts[first : first + PROMPTS_PER_BATCH]
            ids = pad_sequence([torch.tensor(row) for row, _ in batch], batch_first=True)
            wanted = torch.zeros(ids.shape, dtype=torch.bool)
            for row, (_, positions) in zip(wanted, batch, strict=True):
                row[positions] = True
            caught = forward(bridge, ids.to(device), [tap])
            for name, values in activations.items():
                values.append(caught[name][wanted.to(device)].float().cpu())
            bar.update(int(wanted.sum()))
    test = torch.zeros(len(words), dtype=torch.bool)
    test[: round(settings.test * len(words))] = True  # the words are in random order
    x, y = (torch.cat(activations[name]) for name in (tap.hook_in, tap.hook_out))
    return Task([word.text for word in words], x, y, test)


def fit_probes(task: Task) -> Probes:
    """Fit logistic regressions on y, one letter against the rest, on the training words.

    Raises:
        UserError: no letter has words enough.
    """
    train = ~task.test.numpy()
    y = task.y.numpy()
    y = y - y[train].mean(0)
    y = y / y[train].std()  # one scale for all dimensions: directions stay what they are
    letters, directions, right, f1 = [], [], [], []
    for letter in tqdm(LETTERS, desc="probes", unit="letter"):
        is_letter = task.initials == letter
        if min(is_letter[train].sum(), is_letter[~train].sum()) < FEWEST:
            continue
        probe = LogisticRegression(C=PROBE_C, solver="newton-cholesky").fit(y[train], is_letter[train])
        predictions = probe.predict(y)
        letters.append(letter)
        directions.append(probe.coef_[0] / np.linalg.norm(probe.coef_[0]))
        right.append(predictions & is_letter)
        f1.append(f1_of(predictions[~train], is_letter[~train]))
    if not letters:
        raise UserError(
            f"absorption.words: no letter begins {FEWEST} of the {len(task.words)} words' training and test parts; "
            "raise absorption.words, or leave the task out with absorption.words: 0"
        )
    return Probes(
        letters,
        torch.from_numpy(np.array(directions, dtype=np.float32)),
        torch.from_numpy(np.array(right)),
        torch.tensor(f1),
    )


def f1_of(predictions: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    """Return the harmonic mean of precision and recall; 0 when nothing is predicted rightly."""
    return float(2 * (predictions & true).sum() / max(1, predictions.sum() + true.sum()))


def save_task(path: Path, task: Task, probes: Probes) -> None:
    """Write the task and its probes to one safetensors file."""
    tensors = {"x": task.x, "y": task.y, "test": task.test, "direction": probes.direction, "right": probes.right}
    names = json.dumps({"words": task.words, "letters": probes.letters})
    save_tensors(path, tensors | {"f1": probes.f1}, {"words": names})


def load_task(path: Path) -> tuple[Task, Probes]:
    """Read what ``save_task`` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            names = json.loads(file.metadata()["words"])
            value = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        task = Task(names["words"], value["x"], value["y"], value["test"])
        return task, Probes(names["letters"], value["direction"], value["right"], value["f1"])
    except (*DAMAGE, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not readable ({reason}); remove it and run `dvc repro words`") from None
