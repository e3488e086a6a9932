"""Stage `compare`: one table over all runs and the baselines that put them in their place."""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from stages.checks import as_markdown, sanity_checks
from stages.entry import entry
from stages.held_out import open_held_out, tap_of
from stages.params import Params, load_params
from stages.runs import Run, open_inputs
from transcoders.activations.reader import ordered_batches
from transcoders.base_model import load_bridge
from transcoders.devices import resolve_device
from transcoders.dictionary.transcoder import Transcoder, TranscoderConfig
from transcoders.evaluation.predictors import affine, constant, moments, pca, transcoder_predictor
from transcoders.evaluation.suite import Candidate, evaluate
from transcoders.files import replacing, rounded, write_json
from transcoders.training.initialise import initialise_, measure, sample_of

MOMENT_TOKENS = 200_000
SHOWN = ("l0", "nmse", "fvu", "r2", "cosine", "dead_fraction", "delta_ce", "loss_recovered", "kl", "top1_agreement")
log = logging.getLogger(__name__)


def run() -> None:
    """Evaluations and baselines -> data/compare.csv, data/compare.md, metrics/compare.json, checks."""
    params = load_params()
    runs = [Run(v, n, s) for v in params.runs.variants for n in params.runs.layers for s in params.runs.seeds]
    bridge = load_bridge(Path("data/model"), resolve_device(params.device))
    rows = [_run_row(which) for which in runs]
    for layer in params.runs.layers:
        rows += _baseline_rows(params, layer, bridge)
    table = pd.DataFrame(rows)
    checks = []
    for which in runs:
        row = table[table["name"] == which.name].iloc[0]
        baseline = table[(table["name"] == f"affine-{which.layer}")].iloc[0]
        history = pd.read_csv(which.folder / "history.csv")
        checks += sanity_checks(which.name, params.train.k, history, row, float(baseline["fvu"]))
    for check in checks:
        log.log(logging.INFO if check.passed else logging.WARNING, "%s %s = %.4g (%s)%s", check.run, check.name,
                check.value, check.wanted, "" if check.passed else f": NO; {check.remedy}")  # fmt: skip
    _write(table, as_markdown(checks))
    write_json(Path("metrics/checks.json"), {
        name: {c.name: int(c.passed) for c in checks if c.run == name} for name in params.run_names
    })  # fmt: skip


def _run_row(which: Run) -> dict[str, Any]:
    metrics = json.loads((Path("metrics/evaluate") / f"{which.name}.json").read_text())
    config = json.loads((which.folder / "config.json").read_text())
    return {
        "name": which.name, "kind": "trained", "variant": which.variant, "layer": which.layer,
        "seed": which.seed, "d_hidden": config["d_hidden"],
        **{key: value for key, value in metrics.items() if isinstance(value, float)},
    }  # fmt: skip


def _baseline_rows(params: Params, layer: int, bridge: Any) -> list[dict[str, Any]]:
    """Mean, affine map, PCA of rank k and the untrained dictionary, under the same evaluation."""
    inputs = open_inputs(layer)
    device = resolve_device(params.device)
    train = list(ordered_batches(inputs.store, inputs.documents["train"], MOMENT_TOKENS, device))
    m = moments(train)
    k, size = params.train.k, params.train.d_hidden
    d_model = inputs.store.d_model
    d_hidden = size if isinstance(size, int) else int(size[:-1]) * d_model
    statistics = measure(train)
    untrained = Transcoder(TranscoderConfig(
        d_in=d_model, d_out=d_model, d_hidden=d_hidden, k=k,
        input_scale=statistics.x_scale, output_scale=statistics.y_scale,
    ))  # fmt: skip
    initialise_(untrained, statistics, sample_of(train), seed=0)
    del train
    candidates = {
        "mean": Candidate(constant(m.y_mean.float()), 0),
        "affine": Candidate(affine(m), 0),
        f"pca_rank_{k}": Candidate(pca(m, k), 0),
        "untrained": Candidate(transcoder_predictor(untrained.to(device)), d_hidden),
    }
    with torch.inference_mode():
        held_out = open_held_out(inputs, params.evaluate, statistics.y_scale, device)
        found = evaluate(candidates, held_out, bridge, tap_of(inputs), params.evaluate)
    return [
        {
            "name": f"{name}-{layer}", "kind": "baseline", "variant": name, "layer": layer,
            "d_hidden": candidates[name].d_hidden, **rounded(result.metrics),
        }
        for name, result in found.items()
    ]  # fmt: skip


def _write(table: pd.DataFrame, checks: str) -> None:
    with replacing(Path("data/compare.csv")) as path:
        table.to_csv(path, index=False)
    shown = table[["name", "kind", *SHOWN]].to_markdown(index=False, floatfmt=".4g", missingval="")
    text = f"# Comparison on {int(table['tokens'].max())} held-out tokens\n\n{shown}\n\n# Checks\n\n{checks}\n"
    with replacing(Path("data/compare.md")) as path:
        path.write_text(text)
    log.info("%s", shown)
    by_name = {row["name"]: {key: row[key] for key in SHOWN if pd.notna(row[key])} for row in table.to_dict("records")}
    write_json(Path("metrics/compare.json"), by_name)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    entry(run)
