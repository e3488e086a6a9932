"""Stage `collect`: the model's MLP inputs and outputs on text, one zarr store a layer."""

import argparse
import logging
import os
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock

from stages.entry import entry
from stages.params import Params, load_params
from transcoders.activations.recompute import load_mlp
from transcoders.activations.store import Store, notes_folder, point
from transcoders.collecting.capture import collect, layer_fingerprint, publish
from transcoders.collecting.contexts import PAD, Contexts, make_contexts
from transcoders.collecting.settings import CollectSettings
from transcoders.collecting.shards import collect_shards
from transcoders.collecting.text import documents
from transcoders.core.files import cache_folder, replacing, write_json
from transcoders.core.places import Place, place
from transcoders.core.provenance import model_hash
from transcoders.core.tables import write_parquet
from transcoders.distributed.launch import launched
from transcoders.distributed.ranks import Ranks, joined, local_device
from transcoders.language.model import load_bridge, load_tokenizer
from transcoders.language.taps import input_gain, resolve_tap

MODEL = Path("data/model")
ACTIVATIONS = Path("data/activations")
KEPT_SECONDS = 24 * 3600
log = logging.getLogger(__name__)


def run() -> None:
    """data/model and text -> data/activations, data/documents.parquet, data/contexts.parquet."""
    with joined(torch.device("cpu")) as ranks:
        _run(load_params(), ranks)


def _run(params: Params, ranks: Ranks) -> None:
    settings = params.collect
    tokenizer = load_tokenizer(MODEL)
    contexts = ranks.decided(
        lambda: make_contexts(
            documents(settings.text),
            tokenizer,
            tokens=settings.tokens,
            context_length=settings.context_length,
            pool=settings.pool,
            seed=settings.seed,
        )
    )
    weights = ranks.decided(lambda: model_hash(MODEL))
    work = {
        layer: cache_folder("collect") / layer_fingerprint(settings, layer, contexts, weights)
        for layer in sorted(set(settings.layers))
    }
    cache_folder("collect").mkdir(parents=True, exist_ok=True)
    stores = {layer: _place(settings, layer, folder) for layer, folder in work.items()}
    with FileLock(cache_folder("collect") / "lock") if ranks.first else nullcontext():
        missing = ranks.decided(lambda: [layer for layer in work if not Store.is_complete(stores[layer])])
        if missing:
            _collect(params, contexts, {n: stores[n] for n in missing}, tokenizer, weights, ranks)
        if ranks.first:
            _publish(stores, work, at_url=settings.url is not None)
    if ranks.first:
        _write_tables(settings, contexts)


def _place(settings: CollectSettings, layer: int, work: Path) -> Place:
    """A store's own; at a URL its name has all that it depends on, so that no other store is ever overwritten."""
    return place(f"{settings.url}/layer_{layer}-{work.name}.zarr" if settings.url else work / "store.zarr")


def _publish(stores: dict[int, Place], work: dict[int, Path], *, at_url: bool) -> None:
    with replacing(ACTIVATIONS) as temporary:
        for layer, where in stores.items():
            target = temporary / f"layer_{layer}.zarr"
            if at_url:
                point(target, where)
            else:
                publish(work[layer] / "store.zarr", target)
                os.utime(work[layer])
    _forget_old(set(work.values()))


def _collect(
    params: Params, contexts: Contexts, stores: dict[int, Place], tokenizer: Any, weights: str, ranks: Ranks
) -> None:
    settings = params.collect
    bridge = load_bridge(MODEL, local_device(params.device))
    taps = [resolve_tap(bridge, layer, settings.hooks) for layer in stores]
    if settings.outputs == "recomputed":
        load_mlp(MODEL, taps[0].hf_hook_out, torch.device("cpu"))  # so that what cannot be had is told now
    attributes = [
        {
            "layer": tap.layer,
            "model": params.model.name,
            "model_hash": weights,
            "hook_in": tap.hook_in,
            "hook_out": tap.hook_out,
            "hf_hook_in": tap.hf_hook_in,
            "hf_hook_out": tap.hf_hook_out,
            "gain_applied": True,
            "input_gain": input_gain(bridge, tap.layer),
            "text": settings.text.model_dump(),
            "context_length": settings.context_length,
        }
        for tap in taps
    ]
    for path in stores.values():
        notes_folder(path).parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    everything = (bridge, taps, contexts, settings, sorted(tokenizer.all_special_ids))
    paths = list(stores.values())
    if ranks.world.size == 1:
        collect(*everything, paths, attributes)
    else:
        collect_shards(*everything, paths, attributes, ranks)
    seconds = time.perf_counter() - start
    log.info("collected layers %s: %.0f tokens/s", list(stores), settings.tokens / seconds)


def _forget_old(used: set[Path]) -> None:
    """Finished and abandoned work is kept a day, so that going back to it costs nothing."""
    for folder in cache_folder("collect").iterdir():
        old = time.time() - folder.stat().st_mtime > KEPT_SECONDS
        if folder.is_dir() and folder not in used and old:
            shutil.rmtree(folder, ignore_errors=True)


def _write_tables(settings: CollectSettings, contexts: Contexts) -> None:
    write_parquet(contexts.documents, Path("data/documents.parquet"))
    rows = [row[row != PAD].tolist() for row in contexts.tokens]
    write_parquet(pd.DataFrame({"document": contexts.document, "tokens": rows}), Path("data/contexts.parquet"))
    metrics: dict[str, Any] = {
        "tokens": settings.tokens,
        "contexts": len(contexts.tokens),
        "documents": int((contexts.documents["tokens"] > 0).sum()),
    }
    for layer in sorted(set(settings.layers)):
        store = Store(ACTIVATIONS / f"layer_{layer}.zarr")
        metrics[f"layer_{layer}"] = {
            "stored_tokens": store.tokens,
            "special_left_out": settings.tokens - store.tokens - store.attributes["left_out"],
            "norm_outliers_left_out": store.attributes["left_out"],
            "x_rms": (store.attributes["mlp_in_mean_square"] / store.d_model) ** 0.5,
            "y_rms": (store.attributes["mlp_out_mean_square"] / store.d_model) ** 0.5,
        }
    write_json(Path("metrics/collect.json"), metrics)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    entry(lambda: launched(load_params().distributed, run))
