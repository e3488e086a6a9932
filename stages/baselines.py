"""Stage `baselines`: what puts a layer's dictionaries in their place, under the same evaluation."""

import pandas as pd
from pydantic import Field

from stages.common.entry import entry, number_argument
from stages.common.held_out import open_held_out
from stages.common.inputs import MOMENT_TOKENS, open_inputs
from stages.common.params import StageParams
from stages.common.paths import MODEL, baselines_of, words_of
from transcoders.absorption.settings import AbsorptionSettings
from transcoders.absorption.suite import NO_CATEGORY, CategoryTask, compared
from transcoders.absorption.words import load_task
from transcoders.comparison.baselines import fit_baselines
from transcoders.core.devices import resolve_device
from transcoders.core.files import rounded
from transcoders.core.tables import write_csv
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.evaluation.suite import evaluate
from transcoders.language.model import load_bridge
from transcoders.training.settings import DHidden, latents_of


class Params(StageParams):
    """What decides this stage."""

    d_hidden: DHidden = Field(alias="train.d_hidden")
    k: int = Field(alias="train.k")
    pca_ranks: list[int] = Field(alias="compare.pca_ranks")
    evaluate: EvaluateSettings
    absorption: AbsorptionSettings
    device: str


def work(layer: int) -> None:
    """Fit baselines to training tokens, judge them on test documents, and write data/baselines/layer_<layer>.csv."""
    params = Params.read()
    device = resolve_device(params.device)
    inputs = open_inputs(layer, device)
    train = inputs.train_batches(MOMENT_TOKENS, device)
    fitted = fit_baselines(train, latents_of(params.d_hidden, inputs.store.d_model), params.k, params.pca_ranks)
    del train
    task = CategoryTask(*load_task(words_of(layer)), params.absorption, params.evaluate)
    of_untrained = task.of_transcoder(fitted.untrained)
    absorption = {
        "affine": task.of_affine(fitted.linear),
        "untrained": of_untrained.metrics if of_untrained else NO_CATEGORY,
    }
    held_out = open_held_out(inputs, params.evaluate, fitted.output_scale, device)
    evaluations = evaluate(fitted.candidates, held_out, load_bridge(MODEL, device), params.evaluate)
    rows = [
        {"name": f"{name}-{layer}", "kind": "baseline", "variant": name, "layer": layer, "d_hidden": candidate.d_hidden}
        | rounded(evaluations[name].metrics)
        | compared(absorption.get(name, {}))
        for name, candidate in fitted.candidates.items()
    ]
    write_csv(pd.DataFrame(rows), baselines_of(layer))


if __name__ == "__main__":
    layer = number_argument(__doc__, "layer")
    entry(lambda: work(layer))
