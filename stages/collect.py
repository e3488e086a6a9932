"""Stage `collect`: the model's MLP inputs and outputs on text, one zarr store a layer."""

from contextlib import nullcontext
from typing import Any

import pandas as pd
import torch
from filelock import FileLock
from pydantic import Field

from stages.common.code import code_of
from stages.common.entry import entry, no_arguments
from stages.common.params import StageParams
from stages.common.paths import ACTIVATIONS, COLLECTED, CONTEXTS, DOCUMENTS, MODEL
from transcoders.activations.recompute import load_mlp
from transcoders.activations.store import Store
from transcoders.collecting.collect import collect
from transcoders.collecting.contexts import PAD, Contexts, make_contexts
from transcoders.collecting.publish import forget_unused, publish_all, store_keys, store_place
from transcoders.collecting.revision import pinned
from transcoders.collecting.rows import Batches
from transcoders.collecting.settings import CollectSettings
from transcoders.collecting.text import documents
from transcoders.core.files import cache_folder, replacing, write_json
from transcoders.core.inputs import checked_input
from transcoders.core.places import Place
from transcoders.core.provenance import model_hash
from transcoders.core.tables import write_parquet
from transcoders.distributed.launch import launched
from transcoders.distributed.ranks import Ranks, joined, local_device
from transcoders.distributed.settings import DistributedSettings
from transcoders.language.model import load_bridge, load_tokenizer
from transcoders.language.taps import attributes_of, resolve_tap
from transcoders.language.tokens import check_room, context_start, special_ids


class Params(StageParams):
    """What decides this stage; the last decides how it runs, and no result."""

    collect: CollectSettings
    device: str
    model_name: str = Field(alias="model.name")
    distributed: DistributedSettings = DistributedSettings()


def collect_missing(params: Params, contexts: Contexts, stores: dict[int, Place], tokenizer: Any, ranks: Ranks) -> None:
    """Run the model and write the stores of the layers that lack one."""
    settings = params.collect
    bridge = load_bridge(MODEL, local_device(params.device))
    check_room(bridge.original_model, contexts.tokens, "collect.context_length")
    taps = [resolve_tap(bridge, layer, settings.hooks) for layer in stores]
    if settings.outputs == "recomputed":  # what cannot be had is refused now
        for tap in taps:
            load_mlp(MODEL, tap.mlp, tap.mlp_scale, torch.device("cpu"))
    common = {
        "model": params.model_name,
        "model_hash": model_hash(MODEL),
        "text": settings.text.model_dump(),
        "context_length": settings.context_length,
        **context_start(tokenizer, settings.context_start).attributes,
    }
    attributes = [{**attributes_of(bridge, tap), **common} for tap in taps]
    batches = Batches(bridge, taps, contexts, settings.batch_size, special_ids(tokenizer))
    collect(batches, settings, list(stores.values()), attributes, ranks)


def write_tables(settings: CollectSettings, contexts: Contexts) -> None:
    """Write the documents, the contexts, and figures on what was collected."""
    write_parquet(contexts.documents, DOCUMENTS)
    rows = [row[row != PAD].tolist() for row in contexts.tokens]
    write_parquet(pd.DataFrame({"document": contexts.document, "tokens": rows}), CONTEXTS)
    stores = {layer: Store(ACTIVATIONS / f"layer_{layer}.zarr") for layer in sorted(set(settings.layers))}
    figures = {"tokens": settings.tokens, "contexts": len(contexts.tokens), "documents": contexts.used_documents()}
    write_json(COLLECTED, figures | {f"layer_{n}": store.figures(settings.tokens) for n, store in stores.items()})


def work(params: Params, ranks: Ranks) -> None:
    """Read data/model and text; write data/activations, documents, contexts and data/collect.json."""
    text, tokenizer = ranks.decided(lambda: pinned(params.collect.text)), load_tokenizer(MODEL)
    params = params.model_copy(update={"collect": params.collect.model_copy(update={"text": text})})
    settings = params.collect
    start = context_start(tokenizer, settings.context_start).ids
    if "file" in settings.text.source and settings.text.path is not None:
        checked_input("collect.text.path", settings.text.path, "text")
    sizes = settings.model_dump(include={"tokens", "context_length", "pool", "seed"})
    contexts = ranks.decided(lambda: make_contexts(documents(settings.text), tokenizer, start=start, **sizes))
    keys = ranks.decided(lambda: store_keys(settings, contexts, MODEL, code_of("collect")))
    cache = cache_folder("collect")
    cache.mkdir(parents=True, exist_ok=True)
    folders = {layer: cache / key for layer, key in keys.items()}
    stores = {layer: store_place(settings.url, layer, folder) for layer, folder in folders.items()}
    with FileLock(cache / "lock") if ranks.first else nullcontext():
        missing = ranks.decided(lambda: [layer for layer in stores if not Store.is_complete(stores[layer])])
        if missing:
            collect_missing(params, contexts, {n: stores[n] for n in missing}, tokenizer, ranks)
        if ranks.first:
            with replacing(ACTIVATIONS) as out:
                publish_all(stores, out)
            write_tables(
                settings, contexts
            )  # with the lock held: another process would replace what they are read from
            forget_unused(cache, folders.values())


def main() -> None:
    """Work on this process, or on as many as ``distributed`` says."""
    params = Params.read()

    def join() -> None:
        with joined(torch.device("cpu")) as ranks:
            work(params, ranks)

    launched(params.distributed, join)


if __name__ == "__main__":
    no_arguments(__doc__)
    entry(main)
