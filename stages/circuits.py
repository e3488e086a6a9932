"""Stage `circuits`: all MLPs replaced at once, and the circuits of a few prompts, variant by variant.

The transcoders of one seed, one per layer of `runs.layers`, stand in for the MLPs together.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from stages.entry import entry
from stages.held_out import CONTEXTS
from stages.params import Params, load_params
from stages.runs import Run, open_inputs
from transcoders.circuits.connections import strongest
from transcoders.circuits.layout import Layout, load_layout
from transcoders.circuits.picture import index_page, page
from transcoders.circuits.prompts import Prompt, read_prompts
from transcoders.circuits.replacement import replaced_losses
from transcoders.circuits.suite import Traced, trace
from transcoders.circuits.viewer import Labels, graph_json, write_index
from transcoders.comparison.contrast import paired
from transcoders.core.devices import resolve_device
from transcoders.core.files import replacing, rounded, write_json
from transcoders.core.tables import read_parquet, write_parquet
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.loss import context_batches, loss_metrics
from transcoders.figures import circuits as circuit_figures
from transcoders.figures import runs as figures
from transcoders.language.model import load_tokenizer

MODEL = Path("data/model")
FACTS = (
    "difference", "completeness_error", "completeness", "replacement", "graph_latents", "graph_errors", "graph_edges",
    "faithfulness", "latents_needed",
)  # fmt: skip
MEDIANS = ("faithfulness", "latents_needed", "drop_beyond_random")
WORST = ("completeness_error", "largest_sum_error")
Transcoders = dict[int, Transcoder]


def run(seed: int) -> None:
    """models/<variant>-<layer>-<seed>/ of all layers -> data/circuits/<seed>/, metrics/circuits/<seed>.json."""
    params = load_params()
    device = resolve_device(params.device)
    layout, tokenizer = load_layout(MODEL, device), load_tokenizer(MODEL)
    prompts = read_prompts(Path(params.circuits.prompts))
    metrics: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    with replacing(Path("data/circuits") / str(seed)) as out:
        (out / "graphs").mkdir(parents=True)
        graphs, lines = [], []
        for variant in params.runs.variants:
            runs = {layer: Run(variant, layer, seed) for layer in params.runs.layers}
            transcoders = {layer: Transcoder.load(which.folder, device) for layer, which in runs.items()}
            metrics[variant] = rounded(_losses(params, layout, transcoders))
            labels = {key: text for which in runs.values() for key, text in _labels(which).items()}
            for prompt in tqdm(prompts, desc=f"circuits of {variant}", unit="prompt"):
                traced = trace(layout, transcoders, tokenizer, prompt, params.circuits)
                rows.append({"variant": variant, "prompt": prompt.name, "task": prompt.task, **traced.metrics})
                lines.append(_curves(variant, prompt, traced))
                graphs.append(_write_graph(out, variant, prompt, traced, tokenizer, labels, params))
            _write_connections(out / f"connections-{variant}.parquet", layout, transcoders, params.circuits.connections)
        write_index(out / "graphs", graphs)
        table, faithfulness = pd.DataFrame(rows), pd.concat(lines)
        table.to_csv(out / "prompts.csv", index=False, float_format="%.6g")
        faithfulness.to_csv(out / "faithfulness.csv", index=False, float_format="%.6g")
        colours = figures.colours_of(f"{variant}-{seed}" for variant in params.runs.variants)
        drawn = circuit_figures.graph_sizes(table, faithfulness, colours, params.circuits.faithfulness)
        figures.save(drawn, out / "graph_sizes")
        (out / "index.html").write_text(index_page(rows, f"Circuits, seed {seed}"))
    for variant in params.runs.variants:
        metrics[variant] |= _summary(table[table["variant"] == variant])
    write_json(Path("metrics/circuits") / f"{seed}.json", {**metrics, **_contrasts(table)})


def _losses(params: Params, layout: Layout, transcoders: Transcoders) -> dict[str, float]:
    """The loss of the model with every MLP replaced, on test documents."""
    inputs = {layer: open_inputs(layer, layout.device) for layer in transcoders}
    means = {n: torch.tensor(i.store.attributes["mlp_out_mean"], dtype=torch.float32) for n, i in inputs.items()}
    test = next(iter(inputs.values())).documents["test"]
    contexts = read_parquet(CONTEXTS, "collect", ["document", "tokens"])
    contexts = contexts[test[contexts["document"]]]
    batches = context_batches(list(contexts["tokens"]), np.asarray(contexts["document"]), params.circuits.loss_tokens)
    losses = replaced_losses(layout, transcoders, means, batches, len(test))
    tokens = float(losses.tokens.sum())
    return {
        "layers": float(len(transcoders)),
        **loss_metrics(losses, "replaced", params.evaluate),
        "ce_with_errors": float(losses.ce["with_errors"].sum()) / tokens,
    }


def _labels(which: Run) -> Labels:
    """Descriptions of a run's latents with their scores, where stage `features` wrote them."""
    path = Path("data/features") / f"{which.name}.parquet"
    if not path.is_file():
        return {}
    found = read_parquet(path, f"features@{which.name}", ["latent", "description", "score"])
    return {
        (which.layer, int(latent)): f"{text} (score {score:.2f})"
        for latent, text, score in found.itertuples(index=False)
    }


def _write_graph(
    out: Path, variant: str, prompt: Prompt, traced: Traced, tokenizer: Any, labels: Labels, params: Params
) -> dict[str, Any]:
    name = f"{variant}-{prompt.name}"
    graph = graph_json(
        traced.graph, traced.kept, tokenizer, slug=name, scan=variant, prompt=prompt.text, labels=labels,
        threshold=params.circuits.node_threshold,
    )  # fmt: skip
    (out / "graphs" / f"{name}.json").write_text(json.dumps(graph, separators=(",", ":"), allow_nan=False))
    facts = {key.replace("_", " "): f"{traced.metrics[key]:.4g}" for key in FACTS if key in traced.metrics}
    html = page(
        traced.graph, traced.kept, tokenizer, title=f"{prompt.text} →{prompt.answer}, not{prompt.foil}",
        facts={"transcoders": variant, **facts}, labels=labels,
    )  # fmt: skip
    (out / f"{name}.html").write_text(html)
    return graph


def _curves(variant: str, prompt: Prompt, traced: Traced) -> pd.DataFrame:
    found = traced.curves
    columns = {name: value for name, value in found._asdict().items() if name != "sizes"}
    return pd.DataFrame({"variant": variant, "prompt": prompt.name, "latents": found.sizes, **columns})


def _write_connections(path: Path, layout: Layout, transcoders: Transcoders, count: int) -> None:
    """The strongest input-independent connections into every latent."""
    parts = []
    for layer in sorted(transcoders)[1:] if count else []:
        found = strongest(layout, transcoders, layer, count)
        latent = torch.arange(len(found.weight)).repeat_interleave(found.weight.shape[1])
        parts.append(pd.DataFrame({
            "layer": layer, "latent": latent, "from_layer": found.layer.flatten().cpu(),
            "from_latent": found.latent.flatten().cpu(), "weight": found.weight.flatten().cpu(),
        }).astype({"layer": "int16", "latent": "int32", "from_layer": "int16", "from_latent": "int32"}))  # fmt: skip
    if parts:
        write_parquet(pd.concat(parts), path, index=False)


def _summary(table: pd.DataFrame) -> dict[str, float]:
    """Means over prompts; medians of what is a ratio or a size; the worst sums."""
    numbers = table.drop(columns=["variant", "prompt", "task"])
    how = {name: "median" if name in MEDIANS else "max" if name in WORST else "mean" for name in numbers}
    found = numbers.agg(how)
    judged = int(numbers["latents_needed"].notna().sum()) if "latents_needed" in numbers else 0
    return rounded({
        "prompts": float(len(table)), "prompts_judged": float(judged),
        **{str(name): float(value) for name, value in found.items() if np.isfinite(value)},
    })  # fmt: skip


def _contrasts(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Latents needed for equal faithfulness, every variant against the first: geometric mean of ratios over prompts."""
    if "latents_needed" not in table:
        return {}
    wide = table.pivot(index="prompt", columns="variant", values="latents_needed").clip(lower=1).apply(np.log)
    first, *others = table["variant"].unique()
    result = {}
    for other in others:
        both = wide[[first, other]].dropna()
        if len(both) > 1:
            values = np.exp(paired(both[other], both[first]))
            names = ("latents_needed_ratio", "low", "high")
            result[f"{other}_over_{first}"] = rounded(dict(zip(names, map(float, values), strict=True)))
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    arguments = parser.parse_args()
    entry(lambda: run(arguments.seed))
