"""Stage `words` LAYER: the first-letter task of a layer.

Stage `absorption` VARIANT LAYER SEED: absorption, splitting and redundancy of one trained transcoder.
"""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from stages.entry import entry
from stages.held_out import tap_of
from stages.params import Params, load_params
from stages.runs import Inputs, Run, open_inputs
from transcoders.absorption.measure import absorption, dictionary_of, skip_alone
from transcoders.absorption.redundancy import redundancy
from transcoders.absorption.words import LETTERS, Probes, fit_probes, load_task, read_words, save_task
from transcoders.activations.reader import ordered_batches
from transcoders.core.devices import resolve_device
from transcoders.core.errors import UserError
from transcoders.core.files import replacing, rounded, write_json
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.reconstruction import Predictor
from transcoders.language.model import load_bridge, load_tokenizer

NO_LETTERS = {"letters": 0.0}
T = TypeVar("T")
log = logging.getLogger(__name__)
METRICS = Path("metrics/absorption")
SHOWN = ("mean_absorption", "full_absorption", "splitting", "main_f1", "letters_with_latent")
"""What stands in the comparison."""
MODEL = Path("data/model")


def words_file(layer: int) -> Path:
    """Where the words' activations and the probes of a layer lie."""
    return Path("data/words") / f"layer_{layer}.safetensors"


def words(layer: int) -> None:
    """data/model -> data/words/layer_<layer>.safetensors."""
    params = load_params()
    device = resolve_device(params.device)
    inputs = open_inputs(layer, device)
    task = read_words(load_bridge(MODEL, device), tap_of(inputs), load_tokenizer(MODEL), params.absorption)
    save_task(words_file(layer), task, fit_probes(task))


def of_transcoder(params: Params, layer: int, model: Transcoder) -> dict[str, float]:
    """The task put to any transcoder that reads our x."""
    task, probes = load_task(words_file(layer))
    found = _if_letters(lambda: absorption(dictionary_of(model), task, probes, params.absorption, params.evaluate))
    return found.metrics if found else NO_LETTERS


def of_affine(params: Params, layer: int, linear: Predictor) -> dict[str, float]:
    """The task put to an affine map: all of it is the skip path's."""
    task, probes = load_task(words_file(layer))
    settings = (task, probes, params.absorption, params.evaluate)
    return _if_letters(lambda: skip_alone(lambda x: linear(x, x).y_hat, *settings)) or NO_LETTERS


def shown(metrics: dict[str, float]) -> dict[str, float]:
    """Those of the comparison."""
    return {key: metrics[key] for key in SHOWN if key in metrics}


def run(which: Run) -> None:
    """models/<run>/, words and test documents -> metrics/absorption/<run>.json, data/absorption/<run>.csv."""
    params = load_params()
    device = resolve_device(params.device)
    inputs = open_inputs(which.layer, device)
    dictionary = dictionary_of(Transcoder.load(which.folder, device))
    task, probes = load_task(words_file(which.layer))
    found = _if_letters(lambda: absorption(dictionary, task, probes, params.absorption, params.evaluate))
    held_out = ordered_batches(inputs.store, inputs.documents["test"], params.evaluate.tokens, device)
    alike = redundancy(dictionary, held_out, params.absorption.near_parallel)
    _write(which.name, {**(found.metrics if found else NO_LETTERS), **alike}, inputs, probes, params, seed=which.seed)
    letters = found.letters if found else pd.DataFrame(columns=["letter", "kept"])
    with replacing(Path("data/absorption") / f"{which.name}.csv") as path:
        letters.to_csv(path, index=False)


def _if_letters(measure: Callable[[], T]) -> T | None:
    """What was measured; None, and a warning, where a layer's y tells no letter (early layers' does not)."""
    try:
        return measure()
    except UserError as error:
        log.warning("not measured: %s", error)
        return None


def _write(name: str, metrics: dict[str, float], inputs: Inputs, probes: Probes, params: Params, **more: Any) -> None:
    f1 = dict(zip(probes.letters, probes.f1.tolist(), strict=True))
    left_out = [letter for letter in LETTERS if letter not in f1 or f1[letter] < params.absorption.least_probe_f1]
    write_json(METRICS / f"{name}.json", {
        **rounded(metrics), "letters_left_out": "".join(left_out), **more,
        "split_hash": inputs.split_hash, "model_hash": inputs.store.attributes["model_hash"][:16],
    })  # fmt: skip


def main() -> None:
    """``words LAYER`` or ``run VARIANT LAYER SEED``."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    of_layer = commands.add_parser("words", help="the words' activations and the probes")
    of_run = commands.add_parser("run", help="one trained transcoder")
    of_run.add_argument("variant", help="a key of variants in params.yaml")
    for command in (of_layer, of_run):
        command.add_argument("layer", type=int)
    of_run.add_argument("seed", type=int)
    arguments = parser.parse_args()
    if arguments.command == "words":
        entry(lambda: words(arguments.layer))
    else:
        entry(lambda: run(Run(arguments.variant, arguments.layer, arguments.seed)))


if __name__ == "__main__":
    main()
