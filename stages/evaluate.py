"""Stage `evaluate`: one trained transcoder, and each of its prefixes, on the test documents."""

from pathlib import Path
from typing import Any

import pandas as pd

from stages.entry import entry
from stages.held_out import open_held_out, tap_of
from stages.params import load_params
from stages.runs import Run, open_inputs, parse_run
from transcoders.core.devices import resolve_device
from transcoders.core.files import replacing, rounded, write_json
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.latents import NOVEL_COSINE, largest_cosines, removal_effects
from transcoders.evaluation.predictors import transcoder_predictor
from transcoders.evaluation.reconstruction import density_histogram
from transcoders.evaluation.suite import Candidate, Evaluation, HeldOut, evaluate
from transcoders.language.model import load_bridge

OF_A_PREFIX = ("l0", "fvu", "cosine", "delta_ce", "loss_recovered", "dead_fraction")


def run(which: Run) -> None:
    """models/<run>/ and test documents -> metrics/evaluate/<run>.json and tables in data/."""
    params = load_params()
    device = resolve_device(params.device)
    inputs = open_inputs(which.layer, device)
    model = Transcoder.load(which.folder, device)
    held_out = open_held_out(inputs, params.evaluate, model.config.output_scale, device)
    sizes = model.config.prefixes or (model.config.d_hidden,)
    candidates = {str(size): Candidate(transcoder_predictor(model.part(0, size)), size) for size in sizes}
    bridge = load_bridge(Path("data/model"), device)
    found = evaluate(candidates, held_out, bridge, tap_of(inputs), params.evaluate)
    whole = found[str(sizes[-1])]
    groups = _groups(model, found, held_out)
    write_json(
        Path("metrics/evaluate") / f"{which.name}.json",
        {
            **rounded(whole.metrics),
            **{f"prefix_{row['stop']}": rounded({key: row[key] for key in OF_A_PREFIX}) for row in groups[:-1]},
            **rounded(
                {
                    "novel_fraction": groups[-1]["novel_so_far"],
                    "mean_max_cosine": float(largest_cosines(model.W_dec, model.W_dec, same=True).mean()),
                }
            ),
            "seed": which.seed,
            "split_hash": inputs.split_hash,
            "model_hash": inputs.store.attributes["model_hash"][:16],
        },
    )
    _write(
        pd.DataFrame(density_histogram(whole.reconstruction), columns=["log10_frequency", "latents"]), "density", which
    )
    _write(pd.DataFrame({name: values.numpy() for name, values in whole.documents.items()}), "documents", which)
    _write(pd.DataFrame(groups), "groups", which)
    _write(_overlap(model), "overlap", which)


def _groups(model: Transcoder, found: dict[str, Evaluation], held_out: HeldOut) -> list[dict[str, Any]]:
    """A row for each group: the metrics of the prefix that ends with it, and its own latents."""
    effects = removal_effects(model, held_out.batches())
    rows, k, novel = [], 0, 0
    for number, group in enumerate(model.config.groups, 1):
        k += group.k
        whole, prefix = found[str(model.config.d_hidden)], found[str(group.stop)]
        fired = whole.reconstruction.firings[group.start : group.stop] > 0
        useful = effects[group.start : group.stop] > 0
        own: dict[str, Any] = {"mean_max_cosine_earlier": None}
        if group.start:
            cosines = largest_cosines(model.W_dec[group.start : group.stop], model.W_dec[: group.start]).cpu()
            own["mean_max_cosine_earlier"] = float(cosines.mean())
            useful &= cosines < NOVEL_COSINE
        novel += int(useful.sum())
        rows.append({
            "group": number, "start": group.start, "stop": group.stop, "k": k,
            **prefix.metrics,
            "group_dead_fraction": float((~fired).double().mean()),
            "novel_fraction": float(useful.double().mean()), "novel_so_far": novel / group.stop, **own,
        })  # fmt: skip
    return rows


def _overlap(model: Transcoder) -> pd.DataFrame:
    """Mean over a group's decoder rows of the largest cosine to another row of each group."""
    rows = [model.W_dec[group.start : group.stop] for group in model.config.groups]
    table = [
        (i, j, float(largest_cosines(own, other, same=i == j).mean()))
        for i, own in enumerate(rows, 1)
        for j, other in enumerate(rows, 1)
    ]
    return pd.DataFrame(table, columns=["group", "other", "mean_max_cosine"])


def _write(table: pd.DataFrame, kind: str, which: Run) -> None:
    with replacing(Path("data") / kind / f"{which.name}.csv") as path:
        table.to_csv(path, index=False)


if __name__ == "__main__":
    arguments = parse_run(__doc__)
    entry(lambda: run(arguments))
