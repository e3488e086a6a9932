"""Stage `circuits`: all MLPs replaced at once, and the circuits of a few prompts, variant by variant.

The transcoders of one seed, one per layer of `runs.layers`, stand in for the MLPs together; so does each cross-layer
transcoder of that seed.
"""

from typing import Any

import pandas as pd
import torch
from pydantic import Field
from tqdm import tqdm

from stages.common.entry import entry, number_argument
from stages.common.inputs import contexts_of_test_documents, open_inputs
from stages.common.params import Name, StageParams
from stages.common.paths import MODEL, Run, circuits_of
from stages.common.replacements import sets_of
from transcoders.circuits.files import write_graph
from transcoders.circuits.pages import index_page
from transcoders.circuits.parts import ModelParts, load_parts
from transcoders.circuits.prompts import Prompt, read_prompts
from transcoders.circuits.replacement import replaced_losses, replaced_metrics
from transcoders.circuits.settings import CircuitSettings
from transcoders.circuits.suite import trace_prompt
from transcoders.circuits.supernodes import group_of, stability
from transcoders.circuits.tables import connections_table, contrasts, curves_table, labels_of, summary
from transcoders.circuits.viewer import Labels, write_index
from transcoders.circuits.writers import Transcoders, writers_of
from transcoders.core.devices import resolve_device
from transcoders.core.files import replacing, rounded, write_json
from transcoders.core.inputs import checked_input
from transcoders.core.tables import read_parquet, write_parquet
from transcoders.evaluation.loss import context_batches
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.figures import circuits as figures
from transcoders.figures.style import colours_of, save
from transcoders.language.model import load_tokenizer


class Params(StageParams):
    """What decides this stage."""

    circuits: CircuitSettings
    variants: list[Name] = Field(alias="runs.variants")
    layers: list[int] = Field(alias="runs.layers")
    evaluate: EvaluateSettings
    device: str


def losses(params: Params, parts: ModelParts, transcoders: Transcoders) -> dict[str, float]:
    """Measure the loss of the model with every MLP replaced, on test documents."""
    inputs = {layer: open_inputs(layer, parts.device) for layer in writers_of(transcoders)}
    means = {n: torch.tensor(i.store.attributes["mlp_out_mean"], dtype=torch.float32) for n, i in inputs.items()}
    first = next(iter(inputs.values()))
    batches = context_batches(*contexts_of_test_documents(first), params.circuits.loss_tokens)
    sums = replaced_losses(parts, transcoders, means, batches, len(first.documents["test"]))
    return replaced_metrics(sums, len(inputs), params.evaluate)


def read_labels(runs: dict[int, Run]) -> Labels:
    """Read the descriptions of all runs' latents."""
    labels: dict[tuple[int, int], str] = {}
    for layer, run in runs.items():
        columns = ["latent", "description", "score"]
        labels |= labels_of(layer, read_parquet(run.features / "latents.parquet", f"features@{run.name}", columns))
    return labels


def work(seed: int) -> None:
    """Put the transcoders of all layers together, trace the prompts, and write data/circuits/<seed>/."""
    params = Params.read()
    settings, device = params.circuits, resolve_device(params.device)
    parts, tokenizer = load_parts(MODEL, device), load_tokenizer(MODEL)
    file = checked_input("circuits.prompts", settings.prompts, "prompts")
    prompts = read_prompts(file, Prompt, "circuits.prompts")
    metrics: dict[str, Any] = {}
    grouped: dict[str, dict[str, dict[tuple[int, int], int]]] = {}
    rows, curves, graphs = [], [], []
    with replacing(circuits_of(seed)) as out:
        (out / "graphs").mkdir(parents=True)
        for name, transcoders, runs in sets_of(params.variants, params.layers, settings.crosslayer, seed, device):
            labels = read_labels(runs)
            metrics[name], grouped[name] = losses(params, parts, transcoders), {}
            for prompt in tqdm(prompts, desc=f"circuits of {name}", unit="prompt"):
                traced = trace_prompt(parts, transcoders, tokenizer, prompt, settings)
                rows.append({"variant": name, "prompt": prompt.name, "task": prompt.task, **traced.metrics})
                curves.append(curves_table(name, prompt.name, traced))
                grouped[name][prompt.name] = group_of(traced.graph, traced.groups)
                graphs.append(write_graph(out, name, traced, labels, settings.node_threshold))
            if len(connections := connections_table(parts, transcoders, settings.connections)):
                write_parquet(connections, out / f"connections-{name}.parquet", index=False)
        write_index(out / "graphs", graphs)
        table, lines = pd.DataFrame(rows), pd.concat(curves)
        table.to_csv(out / "prompts.csv", index=False, float_format="%.6g")
        lines.to_csv(out / "faithfulness.csv", index=False, float_format="%.6g")
        colours = colours_of(f"{name}-{seed}" for name in metrics)
        save(figures.graph_sizes(table, lines, colours, settings.faithfulness), out / "graph_sizes")
        (out / "index.html").write_text(index_page(rows, f"Circuits, seed {seed}"))
        for name in metrics:
            metrics[name] |= summary(table[table["variant"] == name]) | rounded(stability(grouped[name]))
        write_json(out / "metrics.json", {**metrics, **contrasts(table)})


if __name__ == "__main__":
    seed = number_argument(__doc__, "seed")
    entry(lambda: work(seed))
