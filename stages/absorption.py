"""Stage `absorption`: absorption, splitting and redundancy of one trained transcoder."""

import pandas as pd

from stages.common.entry import entry, run_arguments
from stages.common.inputs import open_inputs
from stages.common.params import StageParams
from stages.common.paths import Run, words_of
from transcoders.absorption.dictionary import dictionary_of
from transcoders.absorption.redundancy import redundancy
from transcoders.absorption.settings import AbsorptionSettings
from transcoders.absorption.suite import NO_CATEGORY, CategoryTask
from transcoders.absorption.words import load_task
from transcoders.activations.reader import ordered_batches
from transcoders.core.devices import resolve_device
from transcoders.core.files import replacing, rounded, write_json
from transcoders.core.tables import write_csv
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.settings import EvaluateSettings


class Params(StageParams):
    """What decides this stage."""

    absorption: AbsorptionSettings
    evaluate: EvaluateSettings
    device: str


def work(run: Run) -> None:
    """Read the model, the words and test documents; write metrics and categories to data/absorption/<run>/."""
    params = Params.read()
    device = resolve_device(params.device)
    inputs = open_inputs(run.layer, device)
    model = Transcoder.load(run.model, device)
    task = CategoryTask(*load_task(words_of(run.layer)), params.absorption, params.evaluate)
    result = task.of_transcoder(model)
    held_out = ordered_batches(inputs.store, inputs.documents["test"], params.evaluate.tokens, device)
    alike = redundancy(dictionary_of(model), held_out, params.absorption.near_parallel)
    metrics = {
        **rounded({**(result.metrics if result else NO_CATEGORY), **alike}),
        "task": params.absorption.task_name,
        "categories_left_out": task.categories_left_out,
        "seed": run.seed,
        **inputs.provenance,
    }
    with replacing(run.absorption) as folder:
        write_json(folder / "metrics.json", metrics)
        write_csv(
            result.categories if result else pd.DataFrame(columns=["category", "kept"]), folder / "categories.csv"
        )


if __name__ == "__main__":
    arguments = run_arguments(__doc__)
    entry(lambda: work(arguments))
