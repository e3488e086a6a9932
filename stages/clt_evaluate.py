"""Stage `clt_evaluate`: one cross-layer transcoder on the test documents, layer by layer and with all MLPs replaced."""

import torch
from pydantic import Field

from stages.common.entry import entry, layers_run_arguments
from stages.common.inputs import Inputs, contexts_of_test_documents, open_inputs
from stages.common.params import StageParams
from stages.common.paths import MODEL
from stages.common.spans import LayersRun
from transcoders.activations.layers import check_alike, ordered_layers
from transcoders.circuits.parts import load_parts
from transcoders.circuits.replacement import replaced_losses, replaced_metrics
from transcoders.core.devices import resolve_device
from transcoders.core.files import replacing, rounded, write_json
from transcoders.core.tables import six_digits, write_csv
from transcoders.dictionary.crosslayer import files
from transcoders.dictionary.crosslayer.transcoder import CrossLayerTranscoder
from transcoders.evaluation.layers import means_of_layers, predict_layers, rows_of_layers
from transcoders.evaluation.loss import context_batches
from transcoders.evaluation.settings import EvaluateSettings


class Params(StageParams):
    """What decides this stage."""

    evaluate: EvaluateSettings
    tokens: int = Field(alias="clt.tokens")
    loss_tokens: int = Field(alias="clt.loss_tokens")
    device: str


def replaced(params: Params, layers: list[int], model: CrossLayerTranscoder, inputs: list[Inputs]) -> dict[str, float]:
    """Measure the loss of the language model with the MLPs of all ``layers`` replaced, on test documents."""
    parts, first = load_parts(MODEL, model.b_dec.device), inputs[0]
    batches = context_batches(*contexts_of_test_documents(first), params.loss_tokens)
    of_layers = zip(layers, inputs, strict=True)
    means = {layer: torch.tensor(each.store.attributes["mlp_out_mean"]) for layer, each in of_layers}
    losses = replaced_losses(parts, model, means, batches, len(first.documents["test"]))
    return replaced_metrics(losses, len(layers), params.evaluate)


def work(run: LayersRun) -> None:
    """Read the model, activations and test documents; write metrics and a row for each layer to data/clt/<run>/."""
    params = Params.read()
    device = resolve_device(params.device)
    model, inputs = files.load(run.model, device), [open_inputs(layer, device) for layer in run.layers]
    stores, first = [of_layer.store for of_layer in inputs], inputs[0]
    check_alike(stores)
    test = first.documents["test"]
    predicted = predict_layers(model, ordered_layers(stores, test, params.tokens, device))
    rows = rows_of_layers(model, predicted, len(test), params.evaluate)
    del predicted
    metrics = {**rounded(means_of_layers(rows)), "seed": run.seed, **first.provenance}
    if model.config.budget == "layer":  # else a layer's latents are not known before those of later layers
        metrics |= replaced(params, run.layers, model, inputs)
    with replacing(run.evaluation) as folder:
        write_json(folder / "metrics.json", metrics)
        write_csv(six_digits(rows), folder / "layers.csv")


if __name__ == "__main__":
    arguments = layers_run_arguments(__doc__)
    entry(lambda: work(arguments))
