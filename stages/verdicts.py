"""Stage `verdicts`: what planted families say of a layer's nested and plain dictionaries."""

import logging

import pandas as pd

from stages.common.entry import entry, number_argument
from stages.common.params import Name, StageParams
from stages.common.paths import HYPOTHESES, Run, verdicts_of
from transcoders.core.files import read_json, replacing
from transcoders.core.tables import read_csv, six_digits, write_csv
from transcoders.figures.planted import effects_and_frontier
from transcoders.figures.style import colours_of, save
from transcoders.planted.judge import PlantedRun, as_hypotheses, half_width, judge, table_of_runs
from transcoders.planted.settings import PlantedSettings
from transcoders.training.settings import VariantSettings, plain_of

log = logging.getLogger(__name__)
COLUMNS = ["variant", "against", "layer", "measure", "ours", "theirs", "effect", "low", "high", "pairs", "seeds"]
COLUMNS += ["verdict", "reason"]


class Params(StageParams):
    """What decides this stage."""

    planted: PlantedSettings
    variants: dict[Name, VariantSettings]


def read_run(run: Run) -> PlantedRun:
    """Read what stage `planted` wrote of ``run``."""
    families = read_csv(run.planted / "families.csv", f"planted@{run.name}")
    return PlantedRun(families, read_json(run.planted / "metrics.json", f"run `dvc repro -f planted@{run.name}`"))


def work(layer: int) -> None:
    """Read data/planted/ of all runs at ``layer``; write data/verdicts/layer_<layer>/."""
    params = Params.read()
    planted, rows = params.planted, []
    runs = {name: {seed: read_run(Run(name, layer, seed)) for seed in planted.seeds} for name in planted.variants}
    plain = plain_of({name: params.variants[name] for name in runs})
    for name in runs:
        if plain is not None and name != plain:
            judged = judge(runs[name], runs[plain], planted.bootstrap)
            log.info("%s against %s: half-width of absorption %.3f", name, plain, half_width(judged))
            rows += [{"variant": name, "against": plain, "layer": layer, **row} for row in judged]
    table, of_runs = six_digits(pd.DataFrame(rows, columns=COLUMNS)), six_digits(table_of_runs(runs))
    colours = colours_of(f"{name}-{seed}" for name in planted.variants for seed in planted.seeds)
    with replacing(verdicts_of(layer)) as folder:
        write_csv(table, folder / "planted.csv")
        write_csv(of_runs, folder / "runs.csv")
        save(effects_and_frontier(table, of_runs, colours), folder / "planted")
        write_csv(as_hypotheses(table), folder / HYPOTHESES)
        (folder / "planted.md").write_text(table.to_markdown(index=False, floatfmt=".3g") + "\n")
    log.info("%s", table.to_string(index=False))


if __name__ == "__main__":
    layer = number_argument(__doc__, "layer")
    entry(lambda: work(layer))
