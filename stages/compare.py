"""Stage `compare`: one table over all runs, the baselines and others' transcoders, and what they say together."""

import logging

import pandas as pd
from pydantic import Field

from stages.common.entry import entry, no_arguments
from stages.common.params import Name, RunSettings, StageParams
from stages.common.paths import (
    COMPARISON,
    HYPOTHESES,
    METRICS,
    OFFICIAL,
    Run,
    all_runs,
    baselines_of,
    classes_of,
    floor_of,
    pruned_of,
    verdicts_of,
)
from transcoders.comparison.checks import check_all
from transcoders.comparison.contrast import contrasts
from transcoders.comparison.hypotheses import COLUMNS, hypotheses
from transcoders.comparison.report import main_columns, report
from transcoders.comparison.results import RunResult, for_terminal, runs_table, with_floor
from transcoders.core.files import read_json, replacing, write_json
from transcoders.core.tables import read_csv, six_digits, write_csv
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.training.settings import VariantSettings

log = logging.getLogger(__name__)


class Params(StageParams):
    """What decides this stage."""

    runs: RunSettings
    variants: dict[Name, VariantSettings]
    evaluate: EvaluateSettings
    planted_layers: list[int] = Field(alias="planted.layers")


def read_result(run: Run) -> RunResult:
    """Read what the other stages wrote of ``run``."""
    train, evaluate, absorption, features = (f"{s}@{run.name}" for s in ("train", "evaluate", "absorption", "features"))
    return RunResult(
        run.name,
        *run,
        config=read_json(run.model / "config.json", f"run `dvc repro -f {train}`"),
        training=read_json(run.model / "metrics.json", f"run `dvc repro -f {train}`"),
        history=read_csv(run.model / "history.csv", train),
        evaluation=read_json(run.evaluation / "metrics.json", f"run `dvc repro -f {evaluate}`"),
        documents=read_csv(run.evaluation / "documents.csv", evaluate),
        absorption=read_json(run.absorption / "metrics.json", f"run `dvc repro -f {absorption}`"),
        categories=read_csv(run.absorption / "categories.csv", absorption),
        features=read_json(run.features / "metrics.json", f"run `dvc repro -f {features}`"),
    )


def read_baselines(layer: int) -> pd.DataFrame:
    """Read what is known of the baselines of ``layer``."""
    floor = read_json(floor_of(layer), f"run `dvc repro -f floor@{layer}`")
    return with_floor(read_csv(baselines_of(layer), f"baselines@{layer}"), floor)


def read_verdicts(params: Params) -> list[pd.DataFrame]:
    """Read what stages that judge on tasks of their own say of the hypotheses."""
    of_classes = [read_csv(classes_of(layer) / HYPOTHESES, f"classes@{layer}") for layer in params.runs.layers]
    return of_classes + [
        read_csv(verdicts_of(layer) / HYPOTHESES, f"verdicts@{layer}") for layer in params.planted_layers
    ]


def work() -> None:
    """Read what all stages wrote; write data/compare/ and metrics/, a file for each row of the table."""
    params = Params.read()
    runs = params.runs
    results = [read_result(run) for run in all_runs(runs.variants, runs.layers, runs.seeds)]
    variants = {name: params.variants[name] for name in runs.variants}
    baselines = [read_baselines(layer) for layer in runs.layers]
    table = runs_table(results, [*baselines, read_csv(OFFICIAL, "official")])
    pruned = pd.concat([read_csv(pruned_of(layer), f"pruned@{layer}") for layer in runs.layers])
    checks = check_all(results, table)
    judged = pd.concat([hypotheses(results, variants), *read_verdicts(params)])[list(COLUMNS)]
    judged["training_tokens"] = judged["training_tokens"].astype("Int64")  # whole numbers, where a task tells them
    differences = contrasts(results, variants, params.evaluate)
    with replacing(COMPARISON) as folder:
        write_csv(table, folder / "runs.csv")
        write_csv(six_digits(differences), folder / "contrasts.csv")
        write_csv(six_digits(judged), folder / HYPOTHESES)
        write_csv(pd.DataFrame(checks).drop(columns="remedy"), folder / "checks.csv")
        (folder / "compare.md").write_text(report(table, pruned, judged, differences, checks))
    with replacing(METRICS) as folder:
        for name, figures in for_terminal(table).items():
            write_json(folder / f"{name}.json", figures)
    log.info("%s", main_columns(table))


if __name__ == "__main__":
    no_arguments(__doc__)
    entry(work)
