"""Stage `official`: other people's transcoders (`compare.official`) on the very same test tokens as ours."""

import logging
from typing import Any

import pandas as pd
from pydantic import Field

from stages.common.entry import entry, no_arguments
from stages.common.held_out import open_held_out, run_clean
from stages.common.inputs import MOMENT_TOKENS, open_inputs
from stages.common.params import StageParams
from stages.common.paths import MODEL, OFFICIAL, words_of
from transcoders.absorption.settings import AbsorptionSettings
from transcoders.absorption.suite import NO_CATEGORY, CategoryTask, compared
from transcoders.absorption.words import load_task
from transcoders.core.devices import resolve_device
from transcoders.core.errors import UserError
from transcoders.core.files import rounded
from transcoders.core.inputs import checked_input, is_local
from transcoders.core.places import UnreachableError
from transcoders.core.tables import write_csv
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.latents import largest_cosines
from transcoders.evaluation.predictors import transcoder_predictor
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.evaluation.suite import Candidate, evaluate
from transcoders.formats.fit import fitted
from transcoders.formats.read import load_one_layer
from transcoders.formats.references import layer_of, names_of
from transcoders.formats.settings import CompareSettings
from transcoders.language.model import load_bridge
from transcoders.training.start import measure

WIDEST_COSINES = 32_768
"""Cosines of all decoder rows to all others take minutes beyond so many latents."""
log = logging.getLogger(__name__)


class Params(StageParams):
    """What decides this stage."""

    compare: CompareSettings
    evaluate: EvaluateSettings
    absorption: AbsorptionSettings
    run_layers: list[int] = Field(alias="runs.layers")
    stored_layers: list[int] = Field(alias="collect.layers")
    device: str


def evaluate_one(params: Params, reference: str, model: Transcoder, layer: int) -> dict[str, Any]:
    """Return the row of one transcoder, once it reads our activations of ``layer``."""
    device = resolve_device(params.device)
    inputs = open_inputs(layer, device)
    model = fitted(model, reference, inputs.store.attributes)
    output_scale = measure(inputs.train_batches(MOMENT_TOKENS, device)).y_scale
    bridge, clean = load_bridge(MODEL, device), None
    if layer not in params.run_layers:  # stage `clean` leaves these out
        clean = run_clean(inputs, bridge, params.evaluate.loss_tokens, params.evaluate.precision)
    held_out = open_held_out(inputs, params.evaluate, output_scale, device, clean)
    candidates = {reference: Candidate(transcoder_predictor(model), model.config.d_hidden)}
    evaluations = evaluate(candidates, held_out, bridge, params.evaluate)
    metrics = dict(evaluations[reference].metrics)
    if model.config.d_hidden <= WIDEST_COSINES:
        W_dec = model.W_dec.float()
        metrics["mean_max_cosine"] = float(largest_cosines(W_dec, W_dec, same=True).mean())
    if layer in params.run_layers:  # the others have no words
        result = CategoryTask(*load_task(words_of(layer)), params.absorption, params.evaluate).of_transcoder(model)
        metrics |= compared(result.metrics if result else NO_CATEGORY)
    return {"layer": layer, "d_hidden": model.config.d_hidden, **rounded(metrics)}


def work() -> None:
    """Read what ``compare.official`` names and write data/official.csv, a row for each that could be had."""
    params = Params.read()
    references = [layer_of(text) for text in params.compare.official]
    names = names_of([reference for reference, _ in references])
    rows = []
    for (reference, layer), name in zip(references, names, strict=True):
        try:
            if is_local(reference):
                checked_input("compare.official", reference, "transcoders")
            model = load_one_layer(reference, resolve_device(params.device))
        except UnreachableError as error:
            log.warning("left out: %s; `dvc repro -f official` tries again", error)
            continue
        layer = model.config.provenance.get("layer") if layer is None else layer
        if layer not in params.stored_layers:
            raise UserError(
                f"compare.official: {reference} is of layer {layer}, and collect.layers has {params.stored_layers}; "
                "add it there, or say the layer as reference@layer"
            )
        row = evaluate_one(params, reference, model, layer)
        rows.append({"name": name, "kind": "official", "variant": name} | row)
    write_csv(pd.DataFrame(rows) if rows else pd.DataFrame(columns=["name"]), OFFICIAL)


if __name__ == "__main__":
    no_arguments(__doc__)
    entry(work)
