"""Stage `plot`: curves, densities and the comparison, as tables and a page for `dvc plots` and as figures."""

from typing import Any

import pandas as pd

from stages.common.entry import entry, no_arguments
from stages.common.params import RunSettings, StageParams
from stages.common.paths import COMPARISON, PLOTS, Run, all_runs, classes_of, pruned_of
from transcoders.core.files import replacing
from transcoders.core.tables import read_csv, read_rows
from transcoders.figures.choice import figures_of
from transcoders.figures.plots_page.build import build_page
from transcoders.figures.style import colours_of, save
from transcoders.figures.tables import by_prefix, placed_by_sparsity, shares, stack, thin, ways_of


class Params(StageParams):
    """What decides this stage."""

    runs: RunSettings
    variants: dict[str, dict[str, Any]]


def read_tables(of_runs: list[Run], layers: list[int], ways: dict[str, str]) -> dict[str, pd.DataFrame]:
    """Read what the stages wrote of all runs, thinned to what a chart shows."""

    def evaluated(run: Run, kind: str) -> pd.DataFrame:
        return read_rows(run.evaluation / f"{kind}.csv", f"evaluate@{run.name}")

    groups = stack({run.name: evaluated(run, "groups") for run in of_runs})
    pruned = pd.concat([read_csv(pruned_of(layer), f"pruned@{layer}") for layer in layers])
    classes = [read_csv(classes_of(layer) / "classes.csv", f"classes@{layer}").assign(layer=layer) for layer in layers]
    histories = {run.name: read_rows(run.model / "history.csv", f"train@{run.name}") for run in of_runs}
    scores = {run.name: read_rows(run.features / "scores.csv", f"features@{run.name}") for run in of_runs}
    return {
        "curves": stack({name: thin(history) for name, history in histories.items()}),
        "density": stack({run.name: shares(evaluated(run, "density")) for run in of_runs}),
        "scores": stack(scores),
        "comparison": placed_by_sparsity(read_rows(COMPARISON / "runs.csv", "compare"), ways),
        "prefixes": by_prefix(groups, pruned),
        "groups": groups,
        "classes": pd.concat(classes),
        "overlap": stack({run.name: evaluated(run, "overlap") for run in of_runs}),
    }


def work() -> None:
    """Read what the stages wrote of all runs, and replace plots/ as a whole: the same bytes for the same input."""
    params = Params.read()
    settings = params.runs
    ways = ways_of(params.variants, settings.layers)
    of_runs = all_runs(settings.variants, settings.layers, settings.seeds)
    tables = read_tables(of_runs, settings.layers, ways)
    with replacing(PLOTS) as out:
        (out / "data").mkdir(parents=True)
        (out / "figures").mkdir()
        for name in ("curves", "density", "scores", "comparison", "prefixes"):
            # Six digits are more than a chart shows, and keep the page small.
            path = out / "data" / f"{name}.csv"
            tables[name].to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
        colours = colours_of((run.name for run in of_runs), ways)
        for name, figure in figures_of(tables, colours).items():
            save(figure, out / "figures" / name)
        # Here, not ignored by git, so that `dvc plots show` finds it in every worktree and clone.
        (out / "template.html").write_text(build_page(), encoding="utf-8")


if __name__ == "__main__":
    no_arguments(__doc__)
    entry(work)
