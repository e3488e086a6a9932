"""Trained transcoders for other people's tools: converted, written, described."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from transcoders.activations.layers import check_alike, ordered_layers
from transcoders.activations.reader import ordered_batches
from transcoders.activations.recompute import open_store
from transcoders.activations.split import documents_of
from transcoders.core.errors import UserError
from transcoders.core.files import read_json, replacing
from transcoders.core.places import Place, name_of, writing
from transcoders.core.tables import read_parquet
from transcoders.dictionary.crosslayer.transcoder import CrossLayerTranscoder
from transcoders.dictionary.dictionary import Dictionary
from transcoders.dictionary.transcoder import Transcoder
from transcoders.formats import circuit_tracer, saelens, sparsify
from transcoders.formats.card import card
from transcoders.formats.convert import Activations, Exported, Samples, as_thresholded, as_topk, folded
from transcoders.formats.crosslayer import circuit_tracer as cross_circuit_tracer
from transcoders.formats.crosslayer import convert as cross_convert

Target = Literal["saelens", "circuit-tracer", "sparsify", "hub"]
TARGETS: tuple[Target, ...] = ("saelens", "circuit-tracer", "sparsify", "hub")
README = "README.md"
"""What makes a folder an export; written last."""
CALIBRATION_TOKENS, TEST_TOKENS = 16_384, 16_384
log = logging.getLogger(__name__)


Fidelity = Mapping[str, Mapping[str, Any]]
"""By the run's name."""


class Trained(NamedTuple):
    """Hold a run: its name, its transcoder, activations of its layers if there are any, and its metrics."""

    name: str
    model: Dictionary
    samples: Samples | None
    metrics: Mapping[str, Any] | None
    model_layers: int | None = None
    """Of the language model, where that is known."""


def export(runs: list[Trained], target: Target, out: Place) -> None:
    """Write ``runs`` (one, but for transcoders of a layer in circuit-tracer) into the folder ``out``.

    It is written whole or (but at a URL) not at all.

    Raises:
        UserError: the target has no place for such a transcoder, or needs activations that are not there.
    """
    across = [run.name for run in runs if isinstance(run.model, CrossLayerTranscoder)]
    if across and target != "circuit-tracer":
        raise UserError(
            f"--to {target}: has no place for the cross-layer transcoder {across[0]}; --to circuit-tracer has"
        )
    if len(runs) > 1 and (across or target != "circuit-tracer"):
        raise UserError(f"--to {target} takes one run, not {len(runs)}; export them one after another")
    fidelity, write = _cross_layer(runs[0]) if across else _of_layers(runs, target)
    for name, facts in fidelity.items():
        log.info("%s to %s: %s", name, target, facts)
    name = name_of(out)
    with writing(out, last=README) as local, replacing(local) as folder:
        folder.mkdir(parents=True)
        write(folder, name)
        described = card(
            target,
            name,
            {run.name: run.model.config for run in runs},
            fidelity,
            {run.name: run.metrics for run in runs if run.metrics is not None},
        )
        (folder / README).write_text(described)


class Prepared(NamedTuple):
    """Hold what was converted: how faithful it is, and what writes it into a folder, given the export's name."""

    fidelity: Fidelity
    write: Callable[[Path, str], None]


def _cross_layer(run: Trained) -> Prepared:
    assert isinstance(run.model, CrossLayerTranscoder)
    layers = run.model.config.layers
    cross_circuit_tracer.check_writable(run.model.config, run.model_layers or len(layers))
    exported = cross_convert.as_thresholded(run.model, run.samples)
    fidelity = {run.name: exported.fidelity}

    def write(folder: Path, name: str) -> None:
        cross_circuit_tracer.write(exported.model, folder, {"scan": name, "fidelity": fidelity})

    return Prepared(fidelity, write)


def _of_layers(runs: list[Trained], target: Target) -> Prepared:
    convert: Callable[[Transcoder, Samples | None], Exported[Transcoder]]
    convert = as_topk if target == "sparsify" else as_thresholded
    done = {run.name: convert(run.model, run.samples) for run in runs if isinstance(run.model, Transcoder)}
    fidelity = {name: exported.fidelity for name, exported in done.items()}

    def write(folder: Path, name: str) -> None:
        if target == "circuit-tracer":
            circuit_tracer.write(_by_layer(done), folder, {"scan": name, "fidelity": fidelity})
            return
        [exported] = done.values()
        if target == "sparsify":
            sparsify.write(exported.model, folder, {"fidelity": exported.fidelity})
        else:
            into = folder / "saelens" if target == "hub" else folder
            saelens.write(exported.model, into, {"fidelity": exported.fidelity})
        if target == "hub" and isinstance(runs[0].model, Transcoder):
            folded(runs[0].model).save(folder)

    return Prepared(fidelity, write)


def _by_layer(done: Mapping[str, Exported[Transcoder]]) -> dict[int, Transcoder]:
    result: dict[int, Transcoder] = {}
    for name, exported in done.items():
        layer = exported.model.config.provenance.get("layer")
        if not isinstance(layer, int) or layer in result:
            raise UserError(
                f"{name}: layer {layer} is not known or named twice; circuit-tracer wants one run per layer"
            )
        result[layer] = exported.model
    return result


def samples_of(data: Path, model: Dictionary) -> Samples | None:
    """Open training activations to calibrate on and test ones to measure on, in ``data`` as the pipeline leaves it.

    Raises:
        UserError: they are of another model, or those of several layers are not of the same tokens.
    """
    across = model.config.layers if isinstance(model, CrossLayerTranscoder) else ()
    layers = across or (model.config.provenance.get("layer"),)
    paths, split = [data / f"activations/layer_{layer}.zarr" for layer in layers], data / "split.parquet"
    if not all(path.exists() for path in paths) or not split.is_file():
        return None
    device = torch.device("cpu")
    stores = [open_store(path, data / "model", device) for path in paths]
    parts = read_parquet(split, "split", ["split"])
    for path, store in zip(paths, stores, strict=True):
        if store.attributes["model_hash"] != model.config.provenance.get("model_hash"):
            raise UserError(f"{path}: holds activations of another model than the transcoder's; give the right --data")

    def batches(part: str, tokens: int) -> Iterable[Activations]:
        documents = documents_of(parts, part)
        if across:
            return ordered_layers(stores, documents, tokens, device)
        return ordered_batches(stores[0], documents, tokens, device)

    if across:
        check_alike(stores)
    return Samples(lambda: batches("train", CALIBRATION_TOKENS), lambda: batches("test", TEST_TOKENS))


def layers_of(folder: Path) -> int | None:
    """Return the number of layers of the language model in ``folder``; None if there is none."""
    file = folder / "config.json"
    layers = read_json(file, "run `dvc repro model`").get("num_hidden_layers") if file.is_file() else None
    return layers if isinstance(layers, int) else None
