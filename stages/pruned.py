"""Stage `pruned`: a layer's plain runs cut to the prefixes of the nested variants, under the same evaluation."""

import pandas as pd
import torch
from pydantic import Field

from stages.common.entry import entry, number_argument
from stages.common.held_out import open_held_out
from stages.common.inputs import MOMENT_TOKENS, open_inputs
from stages.common.params import Name, StageParams
from stages.common.paths import MODEL, all_runs, pruned_of
from transcoders.activations.reader import LabelledBatch
from transcoders.comparison.columns import PRUNED
from transcoders.comparison.pruning import prune_to_prefixes
from transcoders.core.devices import resolve_device
from transcoders.core.files import rounded
from transcoders.core.tables import write_csv
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.predictors import transcoder_predictor
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.evaluation.suite import Candidate, evaluate
from transcoders.language.model import load_bridge
from transcoders.training.settings import VariantSettings, plain_of
from transcoders.training.start import measure


class Params(StageParams):
    """What decides this stage."""

    run_variants: list[Name] = Field(alias="runs.variants")
    seeds: list[int] = Field(alias="runs.seeds")
    variants: dict[Name, VariantSettings]
    evaluate: EvaluateSettings
    device: str


def prune_runs(
    params: Params, layer: int, train: list[LabelledBatch], device: torch.device
) -> dict[tuple[str, int], Transcoder]:
    """Return every plain run of ``layer``, cut to each prefix of the nested variants, by its name and size."""
    variants = [params.variants[name] for name in params.run_variants]
    plain = plain_of({name: params.variants[name] for name in params.run_variants})
    return {
        (run.name, size): model
        for run in all_runs([plain] if plain else [], [layer], params.seeds)
        for size, model in prune_to_prefixes(Transcoder.load(run.model, device), variants, train).items()
    }


def work(layer: int) -> None:
    """Prune, judge on test documents, and write data/pruned/layer_<layer>.csv, which may have no rows."""
    params = Params.read()
    device = resolve_device(params.device)
    inputs = open_inputs(layer, device)
    train = inputs.train_batches(MOMENT_TOKENS, device)
    pruned = prune_runs(params, layer, train, device)
    output_scale = measure(train).y_scale
    del train
    rows = []
    if pruned:
        candidates = {
            f"{name} {size}": Candidate(transcoder_predictor(model), size) for (name, size), model in pruned.items()
        }
        held_out = open_held_out(inputs, params.evaluate, output_scale, device)
        evaluations = evaluate(candidates, held_out, load_bridge(MODEL, device), params.evaluate)
        rows = [
            {"name": name, "layer": layer, "latents": size, "k": model.config.k}
            | rounded(evaluations[f"{name} {size}"].metrics)
            for (name, size), model in pruned.items()
        ]
    write_csv(pd.DataFrame(rows, columns=list(PRUNED)), pruned_of(layer))


if __name__ == "__main__":
    layer = number_argument(__doc__, "layer")
    entry(lambda: work(layer))
