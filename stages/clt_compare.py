"""Stage `clt_compare`: cross-layer transcoders beside those of each layer and baselines, in a table and a figure."""

import logging

import pandas as pd
from pydantic import Field

from stages.common.entry import entry, no_arguments
from stages.common.inputs import MOMENT_TOKENS, open_inputs
from stages.common.params import LayersRunSettings, StageParams
from stages.common.spans import CLT_COMPARISON, LayersRun
from transcoders.activations.reader import ordered_batches
from transcoders.core.devices import resolve_device
from transcoders.core.files import read_json, replacing
from transcoders.core.tables import read_csv, six_digits, write_csv
from transcoders.evaluation.layers import baselines_of_layer
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.figures.layers import errors_by_layer
from transcoders.figures.style import colours_of, save
from transcoders.training.start import measure

log = logging.getLogger(__name__)
OF_A_RUN = ["nmse", "fvu", "total_l0", "dead_fraction", "later_share", "ce_clean", "ce_replaced", "ce_zero"]
OF_A_RUN += ["loss_recovered", "loss_recovered_low", "loss_recovered_high", "kl"]
"""Metrics of the table: means over layers, then those with all MLPs replaced, which a budget over layers has not."""


class Params(StageParams):
    """What decides this stage."""

    clt: LayersRunSettings
    k: int = Field(alias="train.k")
    evaluate: EvaluateSettings
    device: str


def baselines(params: Params, layers: list[int]) -> pd.DataFrame:
    """Fit each layer's baselines to training tokens, and judge them on the test tokens that the runs are judged on."""
    device, tables = resolve_device(params.device), []
    for layer in layers:
        inputs = open_inputs(layer, device)
        train, test = inputs.train_batches(MOMENT_TOKENS, device), inputs.documents["test"]
        table = baselines_of_layer(
            train,
            list(ordered_batches(inputs.store, test, params.clt.tokens, device)),
            documents=len(test),
            k=params.k,
            output_scale=measure(train).y_scale,
            settings=params.evaluate,
        )
        tables.append(table.assign(layer=layer))
    return pd.concat(tables)


def of_span(params: Params, span: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a row for each run and baseline over ``span``, and one for each of them at each layer."""
    runs = [LayersRun(variant, span, seed) for variant in params.clt.variants for seed in params.clt.seeds]
    rows = []
    of_layers = [baselines(params, runs[0].layers)]
    for name, table in of_layers[0].groupby("name", sort=False):
        rows.append({"name": name, "kind": "baseline", "span": span, **table[["nmse", "fvu"]].mean()})
    for run in runs:
        metrics = read_json(run.evaluation / "metrics.json", f"run `dvc repro -f clt_evaluate@{run.name}`")
        rows.append({"name": run.name, "kind": "trained", "span": span, **{key: metrics.get(key) for key in OF_A_RUN}})
        table = read_csv(run.evaluation / "layers.csv", f"clt_evaluate@{run.name}")
        of_layers.append(table.assign(name=run.name))
    return pd.DataFrame(rows), pd.concat(of_layers).assign(span=span)


def work() -> None:
    """Read data/clt/ of all runs; write data/clt_compare/, whose tables have no rows where nothing is trained."""
    params = Params.read()
    spans = params.clt.spans if params.clt.variants and params.clt.seeds else []
    tables = [of_span(params, span) for span in spans]
    rows = pd.concat([table for table, _ in tables] or [pd.DataFrame(columns=["name", "kind", "span", *OF_A_RUN])])
    of_layers = pd.concat([table for _, table in tables] or [pd.DataFrame(columns=["name", "layer"])])
    with replacing(CLT_COMPARISON) as folder:
        write_csv(six_digits(rows), folder / "runs.csv")
        write_csv(six_digits(of_layers), folder / "layers.csv")
        (folder / "runs.md").write_text(rows.to_markdown(index=False, floatfmt=".3g") + "\n")
        for span, (table, by_layer) in zip(spans, tables, strict=True):
            colours = colours_of(table.loc[table["kind"] == "trained", "name"])
            save(errors_by_layer(by_layer, table, colours), folder / f"layers_{span}")
    if len(rows):
        log.info("%s", rows.to_string(index=False))


if __name__ == "__main__":
    no_arguments(__doc__)
    entry(work)
