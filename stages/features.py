"""Stage `features`: what each latent of one trained transcoder means, and a page to read it on."""

from stages.common.entry import entry, run_arguments
from stages.common.inputs import open_inputs
from stages.common.params import StageParams
from stages.common.paths import DOCUMENTS, MODEL, Run
from transcoders.core.devices import resolve_device
from transcoders.core.errors import UserError
from transcoders.core.files import cache_folder, replacing, rounded, write_json
from transcoders.core.tables import read_parquet, write_csv, write_parquet
from transcoders.dictionary.transcoder import WEIGHTS, Transcoder, weights_hash
from transcoders.features.page import write_page
from transcoders.features.scores import histogram
from transcoders.features.settings import FeatureSettings
from transcoders.features.study import Study, endpoint_of, study


class Params(StageParams):
    """What decides this stage."""

    features: FeatureSettings
    device: str


def write(run: Run, result: Study, d_hidden: int, metrics: dict[str, object]) -> None:
    """Write both tables, the histogram of the scores, the metrics and the page to data/features/<run>/."""
    titles = list(read_parquet(DOCUMENTS, "collect", ["title"])["title"])
    with replacing(run.features) as folder:
        write_page(folder, run.name, result.latents, result.contexts, titles, result.headline(d_hidden))
        for name, table in (("latents", result.latents), ("contexts", result.contexts)):
            write_parquet(table, folder / f"{name}.parquet", index=False, compression="zstd")
        write_csv(histogram(result.latents["score"].to_numpy()), folder / "scores.csv")
        write_json(folder / "metrics.json", metrics)


def work(run: Run) -> None:
    """Read the model and the store, study the latents, and write data/features/<run>/."""
    params = Params.read()
    endpoint = endpoint_of(params.features.describe, cache_folder("answers"))
    device = resolve_device(params.device)
    inputs = open_inputs(run.layer, device)
    weights = weights_hash(run.model)
    model = Transcoder.load(run.model, device)
    result = study(model, inputs.store, inputs.documents["test"], MODEL, params.features, endpoint)
    if weights_hash(run.model) != weights:
        raise UserError(
            f"{run.model / WEIGHTS}: changed while its latents were studied (is a training run writing there?); "
            "nothing was kept: run this stage again when it is done"
        )
    write(run, result, model.config.d_hidden, {**rounded(result.metrics), "seed": run.seed, **inputs.provenance})


if __name__ == "__main__":
    arguments = run_arguments(__doc__)
    entry(lambda: work(arguments))
