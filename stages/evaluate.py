"""Stage `evaluate`: one trained transcoder, and each of its prefixes, on the test documents."""

import pandas as pd

from stages.common.entry import entry, run_arguments
from stages.common.held_out import open_held_out
from stages.common.inputs import open_inputs
from stages.common.params import StageParams
from stages.common.paths import MODEL, Run
from transcoders.core.devices import resolve_device
from transcoders.core.files import replacing, rounded, write_json
from transcoders.core.tables import write_csv
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.groups import OF_A_PREFIX, group_rows, overlap
from transcoders.evaluation.latents import largest_cosines
from transcoders.evaluation.predictors import transcoder_predictor
from transcoders.evaluation.reconstruction import density_histogram
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.evaluation.suite import Candidate, evaluate
from transcoders.language.model import load_bridge


class Params(StageParams):
    """What decides this stage."""

    evaluate: EvaluateSettings
    device: str


def work(run: Run) -> None:
    """Read the model and test documents; write metrics and tables to data/evaluate/<run>/."""
    params = Params.read()
    device = resolve_device(params.device)
    inputs = open_inputs(run.layer, device)
    model = Transcoder.load(run.model, device)
    held_out = open_held_out(inputs, params.evaluate, model.config.output_scale, device)
    sizes = model.config.prefixes or (model.config.d_hidden,)
    candidates = {str(size): Candidate(transcoder_predictor(model.part(0, size)), size) for size in sizes}
    evaluations = evaluate(candidates, held_out, load_bridge(MODEL, device), params.evaluate)
    complete = evaluations[str(sizes[-1])]
    groups = group_rows(model, evaluations, held_out.batches())
    redundancy = {
        "novel_fraction": groups[-1]["novel_so_far"],
        "mean_max_cosine": float(largest_cosines(model.W_dec, model.W_dec, same=True).mean()),
    }
    prefixes = {f"prefix_{row['stop']}": rounded({key: row[key] for key in OF_A_PREFIX}) for row in groups[:-1]}
    metrics = {**rounded(complete.metrics), **prefixes, **rounded(redundancy), "seed": run.seed, **inputs.provenance}
    density = pd.DataFrame(density_histogram(complete.reconstruction), columns=["log10_frequency", "latents"])
    documents = pd.DataFrame({name: sums.numpy() for name, sums in complete.documents.items()})
    with replacing(run.evaluation) as folder:
        write_json(folder / "metrics.json", metrics)
        write_csv(density, folder / "density.csv")
        write_csv(documents, folder / "documents.csv")
        write_csv(pd.DataFrame(groups), folder / "groups.csv")
        write_csv(overlap(model), folder / "overlap.csv")


if __name__ == "__main__":
    arguments = run_arguments(__doc__)
    entry(lambda: work(arguments))
