"""Stage `compare`: one table over all runs and the baselines that put them in their place."""

import argparse
import logging
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch

from stages.absorption import of_affine, of_transcoder, shown
from stages.checks import as_markdown, sanity_checks
from stages.entry import entry
from stages.held_out import open_held_out, tap_of
from stages.hypotheses import as_markdown as hypotheses_table
from stages.hypotheses import as_metrics, hypotheses
from stages.params import Params, load_params
from stages.runs import Run, open_inputs, read_metrics
from transcoders.activations.reader import LabelledBatch, ordered_batches
from transcoders.comparison.contrast import contrast, paired
from transcoders.core.devices import resolve_device
from transcoders.core.files import read_json, replacing, rounded, write_json
from transcoders.core.tables import read_csv
from transcoders.dictionary.transcoder import Transcoder, TranscoderConfig
from transcoders.evaluation.latents import pruned, removal_effects
from transcoders.evaluation.predictors import affine, constant, moments, pca, transcoder_predictor
from transcoders.evaluation.suite import Candidate, evaluate
from transcoders.language.model import load_bridge
from transcoders.training.settings import VariantSettings
from transcoders.training.start import initialise_, measure, sample_of

MOMENT_TOKENS = 200_000
IMPORTANCE_BATCHES = 4
SHOWN = (
    "l0", "nmse", "fvu", "r2", "cosine", "dead_fraction", "mean_max_cosine", "delta_ce", "loss_recovered", "kl",
    "top1_agreement", "mean_absorption", "splitting", "training_tokens", "training_seconds",
)  # fmt: skip
OF_SEEDS = ("dead_fraction", "mean_max_cosine", "training_seconds")
PRUNED = ("name", "layer", "latents", "k", "l0", "fvu", "cosine", "dead_fraction", "delta_ce", "loss_recovered")
log = logging.getLogger(__name__)


def run() -> None:
    """Evaluations and baselines -> data/compare.csv, .md, data/pruned.csv, metrics/compare.json, checks."""
    params = load_params()
    runs = [Run(v, n, s) for v in params.runs.variants for n in params.runs.layers for s in params.runs.seeds]
    bridge = load_bridge(Path("data/model"), resolve_device(params.device))
    rows, cut = [_run_row(which) for which in runs], []
    for layer in params.runs.layers:
        baselines, pruned_rows = _beside(params, layer, bridge)
        rows += baselines
        cut += pruned_rows
    rows += cast(list[dict[str, Any]], read_csv(Path("data/official.csv"), "official").to_dict("records"))
    table = pd.DataFrame(rows)
    checks = []
    for which in runs:
        row = table[table["name"] == which.name].iloc[0]
        baseline = table[(table["name"] == f"affine-{which.layer}")].iloc[0]
        history = read_csv(which.folder / "history.csv", f"train@{which.name}")
        checks += sanity_checks(which.name, int(row["k"]), history, row, float(baseline["fvu"]))
    for check in checks:
        log.log(logging.INFO if check.passed else logging.WARNING, "%s %s = %.4g (%s)%s", check.run, check.name,
                check.value, check.wanted, "" if check.passed else f": NO; {check.remedy}")  # fmt: skip
    _write(table, pd.DataFrame(cut, columns=PRUNED), _contrasts(params, table), hypotheses(params), as_markdown(checks))
    write_json(Path("metrics/checks.json"), {
        name: {c.name: int(c.passed) for c in checks if c.run == name} for name in params.run_names
    })  # fmt: skip


def _contrasts(params: Params, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Every variant against the plain one, and progressive against joint, at every layer.

    What no document has a part in, such as dead latents, has an interval over seeds only (none for one).
    """
    variants = {name: params.variants[name] for name in params.runs.variants}
    whole = [name for name, v in variants.items() if v.d_hidden_share == 1]
    plain = [name for name in whole if variants[name] == VariantSettings()][:1]
    joint = [n for n in whole if variants[n].prefixes and variants[n].training == "joint"]
    progressive = [n for n in whole if variants[n].training == "progressive"]
    pairs = [(n, p) for p in plain for n in whole if n != p] + [(n, j) for n in progressive for j in joint]
    rows = []
    for layer in params.runs.layers:
        for ours, theirs in pairs:
            first, second = (
                [_documents(Run(name, layer, seed).name) for seed in params.runs.seeds] for name in (ours, theirs)
            )
            found = contrast(first, second, params.evaluate)
            here = table[table["layer"] == layer].set_index("variant")
            found |= {name: paired(here.loc[[ours], name], here.loc[[theirs], name]) for name in OF_SEEDS}
            for metric, (difference, low, high) in found.items():
                rows.append({
                    "layer": layer, "variant": ours, "against": theirs, "metric": metric,
                    "difference": difference, "low": low, "high": high, "seeds": len(params.runs.seeds),
                })  # fmt: skip
    return rows


def _documents(name: str) -> pd.DataFrame:
    return read_csv(Path(f"data/documents/{name}.csv"), f"evaluate@{name}")


def _run_row(which: Run) -> dict[str, Any]:
    metrics = read_metrics("evaluate", which.name)
    training = read_metrics("cost", which.name, "train")
    config = read_json(which.folder / "config.json", f"run `dvc repro -f train@{which.name}`")
    return {
        "name": which.name, "kind": "trained", "variant": which.variant, "layer": which.layer,
        "seed": which.seed, "d_hidden": config["d_hidden"], "k": config["k"],
        "training_tokens": training["tokens"], "training_seconds": training["seconds"],
        **shown(read_metrics("absorption", which.name)),
        **{key: value for key, value in metrics.items() if isinstance(value, float)},
    }  # fmt: skip


def _beside(params: Params, layer: int, bridge: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What stands beside the runs, under the same evaluation: baselines, and pruned plain dictionaries."""
    device = resolve_device(params.device)
    inputs = open_inputs(layer, device)
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
    cut = _pruned(params, layer, train, device)
    del train
    linear = affine(m)
    untrained = untrained.to(device).requires_grad_(False)
    told = {"affine": of_affine(params, layer, linear), "untrained": of_transcoder(params, layer, untrained)}
    candidates = {
        "mean": Candidate(constant(m.y_mean.float()), 0),
        "affine": Candidate(linear, 0),
        f"pca_rank_{k}": Candidate(pca(m, k), 0),
        "untrained": Candidate(transcoder_predictor(untrained), d_hidden),
    }
    small = {key: Candidate(transcoder_predictor(model), model.config.d_hidden) for key, model in cut.items()}
    with torch.inference_mode():
        held_out = open_held_out(inputs, params.evaluate, statistics.y_scale, device)
        found = evaluate(candidates | small, held_out, bridge, tap_of(inputs), params.evaluate)
    baselines = [
        {
            "name": f"{name}-{layer}", "kind": "baseline", "variant": name, "layer": layer,
            "d_hidden": candidate.d_hidden, **rounded(found[name].metrics), **shown(told.get(name, {})),
        }
        for name, candidate in candidates.items()
    ]  # fmt: skip
    pruned_rows = [
        {"name": key.partition(" ")[0], "layer": layer, "latents": model.config.d_hidden, "k": model.config.k}
        | rounded(found[key].metrics)
        for key, model in cut.items()
    ]
    return baselines, pruned_rows


def _pruned(params: Params, layer: int, train: list[LabelledBatch], device: torch.device) -> dict[str, Transcoder]:
    """Every plain run of full width, cut to the prefixes (sizes and k) of the nested variants among the runs."""
    plain = [name for name in params.runs.variants if params.variants[name] == VariantSettings()]
    nested = [params.variants[name] for name in params.runs.variants]
    result: dict[str, Transcoder] = {}
    for which in (Run(name, layer, seed) for name in plain for seed in params.runs.seeds):
        model = Transcoder.load(which.folder, device)
        config = model.config
        prefixes = {pair for v in nested for pair in zip(v.sizes(config.d_hidden), v.ks(config.k), strict=True)}
        wanted = sorted((m, k) for m, k in prefixes if m < config.d_hidden)
        if wanted:
            importance = removal_effects(model, train[:IMPORTANCE_BATCHES])
            result |= {f"{which.name} {m}": pruned(model, importance, m, k) for m, k in wanted}
    return result


def _write(
    table: pd.DataFrame, cut: pd.DataFrame, contrasts: list[dict[str, Any]],
    judged: list[dict[str, Any]], checks: str,
) -> None:  # fmt: skip
    for name, content in (("compare", table), ("pruned", cut)):
        with replacing(Path("data") / f"{name}.csv") as path:
            content.to_csv(path, index=False)
    # Without a letter that any layer's y tells, the table has no column of that task.
    table = table.reindex(columns=[*table.columns, *(name for name in SHOWN if name not in table)])
    shown = _markdown(table[["name", "kind", *SHOWN]])
    text = f"# Comparison on {int(table['tokens'].max())} held-out tokens\n\n{shown}\n"
    if len(cut):
        text += f"\n# Plain dictionaries, pruned to the prefixes\n\n{_markdown(cut[list(PRUNED)])}\n"
    if judged:
        text += f"\n# Hypotheses\n\n{hypotheses_table(judged)}\n"
    if contrasts:
        text += "\n# Differences between variants\n\n95 % intervals over documents and seeds\n\n"
        text += f"{_markdown(pd.DataFrame(contrasts))}\n"
    with replacing(Path("data/compare.md")) as path:
        path.write_text(f"{text}\n# Checks\n\n{checks}\n")
    log.info("%s", shown)
    figures: dict[str, Any] = {
        row["name"]: {key: row[key] for key in SHOWN if pd.notna(row[key])} for row in table.to_dict("records")
    }
    for row in contrasts:
        values = rounded({key: row[key] for key in ("difference", "low", "high") if pd.notna(row[key])})
        figures.setdefault(f"{row['variant']}_minus_{row['against']}-{row['layer']}", {})[row["metric"]] = values
    write_json(Path("metrics/compare.json"), figures | as_metrics(judged))


def _markdown(table: pd.DataFrame) -> str:
    return table.to_markdown(index=False, floatfmt=".4g", missingval="")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    entry(run)
