"""Stage `classes`: what each of a layer's transcoders makes of classes of words, and what nested ones make better."""

import logging
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.common.dictionaries import LayerParams, dictionaries_of
from stages.common.entry import entry, number_argument
from stages.common.inputs import open_inputs
from stages.common.paths import HYPOTHESES, MODEL, Run, all_runs, classes_of
from transcoders.activations.reader import LabelledBatch, ordered_batches
from transcoders.classes.judge import ClassRun, verdicts
from transcoders.classes.latents import activity
from transcoders.classes.measure import MEASURED, measure, probe_classes
from transcoders.classes.probes import read_outputs
from transcoders.classes.settings import ClassSettings
from transcoders.classes.words import classes_among, find_words, read_table
from transcoders.core.devices import resolve_device
from transcoders.core.files import replacing
from transcoders.core.tables import six_digits, write_csv
from transcoders.language.model import load_tokenizer
from transcoders.probing.probes import labels_of_words
from transcoders.probing.settings import ProbingSettings
from transcoders.probing.table import COLUMNS, table_of
from transcoders.training.settings import plain_of

log = logging.getLogger(__name__)


class Params(LayerParams):
    """What decides this stage."""

    classes: ClassSettings
    probing: ProbingSettings


class Measured(NamedTuple):
    """Hold what was measured of the dictionaries of a layer."""

    runs: dict[str, ClassRun]
    """Of the untrained dictionary and of each run."""
    probing: pd.DataFrame


def measured(params: Params, layer: int) -> Measured:
    """Measure the untrained dictionary and each run of ``layer``; without classes there are none, and no rows."""
    settings, device = params.classes, resolve_device(params.device)
    nothing = Measured({}, pd.DataFrame(columns=COLUMNS))
    if not settings.tokens:
        return nothing
    inputs, rng = open_inputs(layer, device), np.random.default_rng(settings.seed)
    tokens, documents = (inputs.store.labels(name, 0, settings.tokens) for name in ("token", "document"))
    words, table = find_words(tokens, documents, load_tokenizer(MODEL), settings.occurrences), read_table()
    classes = classes_among(words, table, settings.members)
    needs = f"{settings.members} words that occur {settings.occurrences} times"
    log.info("classes: %d of %d have %s in %d tokens", len(classes), len(table), needs, len(tokens))
    if not classes:
        return nothing

    def read() -> Iterator[LabelledBatch]:
        everyone = np.ones(len(inputs.documents["test"]), bool)
        return ordered_batches(inputs.store, everyone, settings.tokens, device)

    outputs = read_outputs(read(), words, settings.others, rng)
    probed = probe_classes(classes, words, outputs, settings, rng)
    runs: dict[str, ClassRun] = {}
    labels = labels_of_words(classes, params.probing.folds)
    frequency = np.log(words.counts[labels.items, None]).astype(np.float32)
    features: list[tuple[str, NDArray[np.float32], list[int | None]]] = [
        ("frequency", frequency, [None]),
        ("y", outputs.means[labels.items].numpy(), [None]),
    ]
    for name, model in dictionaries_of(params, layer, inputs, device):
        active = activity(model, read(), words)
        runs[name] = ClassRun(measure(active, model.W_dec.float().cpu(), probed, words), active.l0)
        features.append((name, active.means(words.counts)[labels.items].numpy(), [*params.probing.k]))
    plain, of_runs = plain_of(params.trained), all_runs([*params.trained], [layer], params.seeds)
    against = {run.name: Run(plain, layer, run.seed).name for run in of_runs} if plain else {}
    return Measured(runs, table_of(iter(features), against, labels, params.probing))


def work(layer: int) -> None:
    """Measure and judge; write data/classes/layer_<layer>/, whose tables may have no rows."""
    params = Params.read()
    (of_runs, probing), trained = measured(params, layer), params.trained
    by_variant = {v: {s: of_runs[Run(v, layer, s).name] for s in params.seeds} for v in trained} if of_runs else {}
    judged = verdicts(by_variant, trained, layer, params.classes)
    tables = [run.classes.assign(name=name) for name, run in of_runs.items()]
    with replacing(classes_of(layer)) as folder:
        write_csv(six_digits(pd.concat(tables or [pd.DataFrame(columns=["name", *MEASURED])])), folder / "classes.csv")
        write_csv(six_digits(probing), folder / "probing.csv")
        write_csv(six_digits(judged), folder / HYPOTHESES)
    log.info("%s", judged.to_string(index=False))


if __name__ == "__main__":
    layer = number_argument(__doc__, "layer")
    entry(lambda: work(layer))
