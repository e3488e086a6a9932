"""Trained transcoders for other people's tools: converted, written, described."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from transcoders.activations.reader import ordered_batches
from transcoders.activations.recompute import open_store
from transcoders.activations.split import documents_of
from transcoders.core.errors import UserError
from transcoders.core.files import replacing
from transcoders.core.places import Place, name_of, writing
from transcoders.core.tables import read_parquet
from transcoders.dictionary.transcoder import Transcoder
from transcoders.formats import circuit_tracer, saelens, sparsify
from transcoders.formats.card import card
from transcoders.formats.convert import Exported, Samples, as_thresholded, as_topk, folded

Target = Literal["saelens", "circuit-tracer", "sparsify", "hub"]
TARGETS: tuple[Target, ...] = ("saelens", "circuit-tracer", "sparsify", "hub")
README = "README.md"
"""What makes a folder an export; written last."""
CALIBRATION_TOKENS, TEST_TOKENS = 16_384, 16_384
log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """Hold a run: its name, its transcoder, activations of its layer if there are any, and its metrics."""

    name: str
    model: Transcoder
    samples: Samples | None
    metrics: Mapping[str, Any] | None


def export(runs: list[Trained], target: Target, out: Place) -> None:
    """Write ``runs`` (one, but for circuit-tracer) into the folder ``out``, whole or (but at a URL) not at all.

    Raises:
        UserError: the target has no place for such a transcoder, or needs activations that are not there.
    """
    if len(runs) > 1 and target != "circuit-tracer":
        raise UserError(f"--to {target} takes one run, not {len(runs)}; export them one after another")
    convert: Callable[[Transcoder, Samples | None], Exported] = as_topk if target == "sparsify" else as_thresholded
    done = {run.name: convert(run.model, run.samples) for run in runs}
    fidelity = {name: exported.fidelity for name, exported in done.items()}
    for name, facts in fidelity.items():
        log.info("%s to %s: %s", name, target, facts)
    name = name_of(out)
    with writing(out, last=README) as local, replacing(local) as folder:
        folder.mkdir(parents=True)
        if target == "circuit-tracer":
            circuit_tracer.write(_by_layer(done), folder, {"scan": name, "fidelity": fidelity})
        else:
            [(name, exported)] = done.items()
            if target == "sparsify":
                sparsify.write(exported.model, folder, {"fidelity": exported.fidelity})
            else:
                into = folder / "saelens" if target == "hub" else folder
                saelens.write(exported.model, into, {"fidelity": exported.fidelity})
            if target == "hub":
                folded(runs[0].model).save(folder)
        described = card(
            target,
            name,
            {run.name: run.model.config for run in runs},
            fidelity,
            {run.name: run.metrics for run in runs if run.metrics is not None},
        )
        (folder / README).write_text(described)


def _by_layer(done: Mapping[str, Exported]) -> dict[int, Transcoder]:
    result: dict[int, Transcoder] = {}
    for name, exported in done.items():
        layer = exported.model.config.provenance.get("layer")
        if not isinstance(layer, int) or layer in result:
            raise UserError(
                f"{name}: layer {layer} is not known or named twice; circuit-tracer wants one run per layer"
            )
        result[layer] = exported.model
    return result


def samples_of(data: Path, model: Transcoder) -> Samples | None:
    """Open training activations to calibrate on and test ones to measure on, in ``data`` as the pipeline leaves it."""
    path, split = data / f"activations/layer_{model.config.provenance.get('layer')}.zarr", data / "split.parquet"
    if not path.exists() or not split.is_file():
        return None
    device = torch.device("cpu")
    store, parts = open_store(path, data / "model", device), read_parquet(split, "split", ["split"])
    if store.attributes["model_hash"] != model.config.provenance.get("model_hash"):
        raise UserError(f"{path}: holds activations of another model than the transcoder's; give the right --data")
    return Samples(
        lambda: ordered_batches(store, documents_of(parts, "train"), CALIBRATION_TOKENS, device),
        lambda: ordered_batches(store, documents_of(parts, "test"), TEST_TOKENS, device),
    )
