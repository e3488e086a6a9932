"""What an MLP makes of the words of an absorption task, and the probes for their categories (arXiv 2409.14507)."""

import json
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

from transcoders.absorption.prompts import FEWEST, task_prompts, words_of_task
from transcoders.absorption.settings import AbsorptionSettings
from transcoders.core.errors import DAMAGE, UserError
from transcoders.core.tensors import save_tensors
from transcoders.language.forward import forward
from transcoders.language.taps import Tap
from transcoders.language.tokens import positions_of

PROMPTS_PER_BATCH = 16
PROBE_C = 1.0  # lower F1 with 10, and with balanced class weights at 0.02 and 0.1


class Task(NamedTuple):
    """Hold words and their categories, their MLP inputs and outputs (raw units), and a mask of those for testing."""

    words: list[str]
    categories: NDArray[np.str_]
    x: Float[Tensor, "words d_in"]
    y: Float[Tensor, "words d_out"]
    test: Bool[Tensor, "words"]


class Probes(NamedTuple):
    """Hold a linear probe on y for each category that had words enough, whatever its quality."""

    categories: list[str]
    direction: Float[Tensor, "categories d_out"]
    """Unit vectors."""
    right: Bool[Tensor, "categories words"]
    """Where the probe says that the word belongs to the category, and it does."""
    f1: Float[Tensor, "categories"]
    """On the test words."""


NO_TASK = (
    Task([], np.array([], dtype=np.str_), torch.zeros(0, 0), torch.zeros(0, 0), torch.zeros(0, dtype=torch.bool)),
    Probes([], torch.zeros(0, 0), torch.zeros(0, 0, dtype=torch.bool), torch.zeros(0)),
)
"""What stands in the file where the task is left out."""


@torch.inference_mode()
def read_words(bridge: Any, tap: Tap, tokenizer: Any, start: list[int], settings: AbsorptionSettings) -> Task:
    """Run the model over the task's prompts, which begin with ``start``, and read x and y at each word.

    With ``settings.shuffled`` the categories are dealt anew among the words afterwards: the task's control.
    """
    words = words_of_task(tokenizer, settings)
    rng = np.random.default_rng(settings.seed)
    words = [words[i] for i in rng.permutation(len(words))]
    device = next(bridge.original_model.parameters()).device
    prompts = task_prompts(words, tokenizer, settings.seed, start, positions_of(bridge.original_model))
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
    categories = np.array([word.category for word in words])
    if settings.shuffled:
        categories = rng.permutation(categories)
    return Task([word.text for word in words], categories, x, y, test)


def fit_probes(task: Task) -> Probes:
    """Fit logistic regressions on y, one category against the rest, on the training words.

    Raises:
        UserError: no category has words enough.
    """
    train = ~task.test.numpy()
    y = task.y.numpy()
    y = y - y[train].mean(0)
    y = y / y[train].std()  # one scale for all dimensions: directions stay what they are
    categories, directions, right, f1 = [], [], [], []
    for category in tqdm(sorted(set(task.categories.tolist())), desc="probes", unit="probe"):
        belongs = task.categories == category
        if min(belongs[train].sum(), belongs[~train].sum()) < FEWEST:
            continue
        probe = LogisticRegression(C=PROBE_C, solver="newton-cholesky").fit(y[train], belongs[train])
        predictions = probe.predict(y)
        categories.append(category)
        directions.append(probe.coef_[0] / np.linalg.norm(probe.coef_[0]))
        right.append(predictions & belongs)
        f1.append(f1_of(predictions[~train], belongs[~train]))
    if not categories:
        raise UserError(
            f"absorption.words: no category has {FEWEST} of the {len(task.words)} words in both the training and the "
            "test part; raise absorption.words, or leave the task out with absorption.words: 0"
        )
    return Probes(
        categories,
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
    names = json.dumps({"words": task.words, "of_words": task.categories.tolist(), "categories": probes.categories})
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
        of_words = np.array(names["of_words"], dtype=np.str_)
        task = Task(names["words"], of_words, value["x"], value["y"], value["test"])
        return task, Probes(names["categories"], value["direction"], value["right"], value["f1"])
    except (*DAMAGE, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not readable ({reason}); remove it and run `dvc repro words`") from None
