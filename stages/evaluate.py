"""Stage `evaluate`: one trained transcoder on the test documents."""

from pathlib import Path

import pandas as pd

from stages.entry import entry
from stages.held_out import open_held_out, tap_of
from stages.params import load_params
from stages.runs import Run, open_inputs, parse_run
from transcoders.base_model import load_bridge
from transcoders.devices import resolve_device
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.predictors import transcoder_predictor
from transcoders.evaluation.reconstruction import density_histogram
from transcoders.evaluation.suite import Candidate, evaluate
from transcoders.files import replacing, rounded, write_json


def run(which: Run) -> None:
    """models/<run>/ and test documents -> metrics/evaluate/<run>.json, data/density/<run>.csv."""
    params = load_params()
    device = resolve_device(params.device)
    inputs = open_inputs(which.layer)
    model = Transcoder.load(which.folder, device)
    held_out = open_held_out(inputs, params.evaluate, model.config.output_scale, device)
    candidate = Candidate(transcoder_predictor(model), model.config.d_hidden)
    bridge = load_bridge(Path("data/model"), device)
    found = evaluate({"ours": candidate}, held_out, bridge, tap_of(inputs), params.evaluate)["ours"]
    write_json(
        Path("metrics/evaluate") / f"{which.name}.json",
        {
            **rounded(found.metrics),
            "seed": which.seed,
            "split_hash": inputs.split_hash,
            "model_hash": inputs.store.attributes["model_hash"][:16],
        },
    )
    histogram = pd.DataFrame(density_histogram(found.reconstruction), columns=["log10_frequency", "latents"])
    with replacing(Path("data/density") / f"{which.name}.csv") as path:
        histogram.to_csv(path, index=False)


if __name__ == "__main__":
    arguments = parse_run(__doc__)
    entry(lambda: run(arguments))
