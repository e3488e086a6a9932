"""Stage `official`: other people's transcoders (`compare.official`) on the very same test tokens as ours."""

import argparse
import csv
import logging
from pathlib import Path
from typing import Any

from stages.entry import entry
from stages.params import Params, load_params
from transcoders.core.errors import UserError
from transcoders.core.files import replacing

MOMENT_TOKENS = 200_000
WIDEST_COSINES = 32_768  # cosines of all decoder rows to all others: minutes beyond this
log = logging.getLogger(__name__)


def run() -> None:
    """References, activations and the base model -> data/official.csv, a row for each that could be had."""
    params = load_params()
    rows = _evaluate_all(params) if params.compare.official else []
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["name"]
    with replacing(Path("data/official.csv")) as path, path.open("w") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def _evaluate_all(params: Params) -> list[dict[str, Any]]:
    from transcoders.core.devices import resolve_device  # torch takes seconds, which an empty list need not wait for
    from transcoders.core.places import UnreachableError
    from transcoders.formats.read import read

    device = resolve_device(params.device)
    references = [layer_of(text) for text in params.compare.official]
    names = names_of([reference for reference, _ in references])
    rows = []
    for (reference, layer), name in zip(references, names, strict=True):
        try:
            model = read(reference, device)
        except UnreachableError as error:
            log.warning("left out: %s; `dvc repro -f official` tries again", error)
            continue
        found = model.config.provenance.get("layer") if layer is None else layer
        if found not in params.collect.layers:
            raise UserError(
                f"compare.official: {reference} is of layer {found}, and collect.layers has {params.collect.layers}; "
                "add it there, or say the layer as reference@layer"
            )
        rows.append({"name": name, "kind": "official", "variant": name} | _evaluate(params, reference, model, found))
    return rows


def layer_of(text: str) -> tuple[str, int | None]:
    """``reference@layer``, where the reference itself does not tell the layer."""
    reference, at, layer = text.rpartition("@")
    return (reference, int(layer)) if at and layer.isdigit() else (text, None)


def names_of(references: list[str]) -> list[str]:
    """The folders' names, where these tell them apart and say enough (``layer_9_width_16k_l0_small``)."""
    folders = [reference.partition(":")[2] or reference for reference in references]
    short = [folder.strip("/").rpartition("/")[2] for folder in folders]
    clear = [name.startswith("layer") and short.count(name) == 1 for name in short]
    return [name if enough else full for name, enough, full in zip(short, clear, references, strict=True)]


def _evaluate(params: Params, reference: str, model: Any, layer: int) -> dict[str, Any]:
    from stages.absorption import of_transcoder, shown
    from stages.held_out import open_held_out, tap_of
    from stages.runs import open_inputs
    from transcoders.activations.reader import ordered_batches
    from transcoders.core.devices import resolve_device
    from transcoders.core.files import rounded
    from transcoders.evaluation.latents import largest_cosines
    from transcoders.evaluation.predictors import transcoder_predictor
    from transcoders.evaluation.suite import Candidate, evaluate
    from transcoders.formats.fit import fitted
    from transcoders.language.model import load_bridge
    from transcoders.training.start import measure

    device = resolve_device(params.device)
    inputs = open_inputs(layer, device)
    model = fitted(model, reference, inputs.store.attributes)
    train = list(ordered_batches(inputs.store, inputs.documents["train"], MOMENT_TOKENS, device))
    held_out = open_held_out(inputs, params.evaluate, measure(train).y_scale, device)
    del train
    candidates = {"it": Candidate(transcoder_predictor(model), model.config.d_hidden)}
    bridge = load_bridge(Path("data/model"), device)
    metrics = evaluate(candidates, held_out, bridge, tap_of(inputs), params.evaluate)["it"].metrics
    if model.config.d_hidden <= WIDEST_COSINES:
        W_dec = model.W_dec.float()
        metrics = metrics | {"mean_max_cosine": float(largest_cosines(W_dec, W_dec, same=True).mean())}
    if layer in params.runs.layers:  # the others have no words
        metrics = metrics | shown(of_transcoder(params, layer, model))
    return {"layer": layer, "d_hidden": model.config.d_hidden, **rounded(metrics)}


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    entry(run)
