"""What a training run is put together from: for `train`, `planted` (other activations) and `clt` (many layers)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from stages.common.code import code_of
from stages.common.inputs import Inputs
from stages.common.paths import Run
from stages.common.spans import LayersRun
from transcoders.activations.layers import LayersReader, check_alike, ordered_layers
from transcoders.activations.reader import Batch, ShuffledReader, ordered_batches
from transcoders.core.errors import UserError
from transcoders.core.files import cache_folder, fingerprint
from transcoders.distributed.ranks import Ranks
from transcoders.training.config import config_of, cross_layer_config_of
from transcoders.training.crosslayer import SAMPLE_TOKENS, start_of_layers
from transcoders.training.memory import check_memory
from transcoders.training.settings import CheckpointSettings, TrainSettings, VariantSettings
from transcoders.training.start import Start, measure, sample_of
from transcoders.training.trainer import Job

STATISTICS_TOKENS = 262_144
VALIDATION_TOKENS = 16_384
VALIDATION_TOKENS_OF_LAYERS = 4096
"""Where every token has a row for each of many layers."""
CPU = torch.device("cpu")
TAPS = ("layer", "model", "model_hash", "hook_in", "hook_out", "hf_hook_in", "hf_hook_out", "gain_applied")
STARTS = ("context_start", "prepend_bos")
OF_THE_LAYER = ("layer", "hook_in", "hook_out", "hf_hook_in", "hf_hook_out")


class Training(Protocol):
    """The parameters of a stage that trains."""

    train: TrainSettings
    variant: VariantSettings
    device: str
    checkpoints: CheckpointSettings


def job_of(stage: str, params: Training, run: Run, inputs: Inputs, device: torch.device, ranks: Ranks) -> Job:
    """Put together what ``stage`` trains, and on what; only the very same run continues its checkpoint.

    Raises:
        UserError: the variant is one across layers, or its sizes do not fit.
    """
    settings, store = params.train, inputs.store
    if params.variant.reach is not None:
        raise UserError(
            f"runs.variants: {run.variant!r} has a reach, so it spans layers; name it in clt.variants instead"
        )
    train = inputs.train_batches(STATISTICS_TOKENS, CPU)
    start = Start(measure(train), sample_of(train), run.seed)
    config = config_of(settings, params.variant, store.d_model, start.statistics, _provenance(run, inputs, TAPS))
    reader = _reader(inputs, settings, settings.buffer_tokens, run.seed, device, ranks)
    held_out = ordered_batches(store, inputs.documents["validation"], VALIDATION_TOKENS, device)
    validation = [Batch(batch.x, batch.y) for batch in held_out]
    key, every = resume_key(stage, params, run, [inputs]), params.checkpoints.every
    return Job(config, settings, params.variant, reader, start, validation, key, device, every, ranks)


def layers_job_of(
    stage: str, params: Training, run: LayersRun, inputs: Sequence[Inputs], device: torch.device, ranks: Ranks
) -> Job:
    """Put together a run across the layers of ``inputs``, as ``job_of`` does for one.

    Raises:
        UserError: the variant is one of a single layer, its sizes do not fit, the layers' activations are not of the
            same tokens, or memory will not suffice.
    """
    settings, stores, first = params.train, [of_layer.store for of_layer in inputs], inputs[0]
    if params.variant.reach is None:
        raise UserError(f"clt.variants: {run.variant!r} has no reach; set variants.{run.variant}.reach to all, or to 0")
    check_alike(stores)
    statistics = [measure(of_layer.train_batches(STATISTICS_TOKENS, CPU)) for of_layer in inputs]
    by_layer = dict(zip(run.layers, statistics, strict=True))
    provenance = _provenance(run, first, [name for name in TAPS if name not in OF_THE_LAYER])
    provenance["taps"] = [{name: store.attributes[name] for name in OF_THE_LAYER} for store in stores]
    config = cross_layer_config_of(settings, params.variant, first.store.d_model, by_layer, provenance)
    check_memory(config, settings.batch_size, SAMPLE_TOKENS, device)
    sample = list(ordered_layers(stores, first.documents["train"], SAMPLE_TOKENS, CPU))
    start = start_of_layers(statistics, sample, run.seed)
    buffer = settings.buffer_tokens // len(stores)  # as many rows as one layer's reader holds, or a chunk of each
    reader = LayersReader([_reader(each, settings, buffer, run.seed, device, ranks) for each in inputs])
    held_out = ordered_layers(stores, first.documents["validation"], VALIDATION_TOKENS_OF_LAYERS, device)
    validation = [Batch(batch.x, batch.y) for batch in held_out]
    key, every = resume_key(stage, params, run, inputs), params.checkpoints.every
    return Job(config, settings, params.variant, reader, start, validation, key, device, every, ranks)


def resume_key(stage: str, params: Training, run: Run | LayersRun, inputs: Sequence[Inputs]) -> Path:
    """Name the checkpoint by everything that the result depends on."""
    settings = {name: getattr(params, name) for name in ("train", "variant")}
    decides = {name: value.model_dump() for name, value in settings.items()} | {"device": params.device}
    attributes = [of_layer.store.attributes for of_layer in inputs]
    key = fingerprint(decides, run, attributes, inputs[0].split_hash, code_of(stage), torch.__version__)
    return cache_folder("checkpoints") / f"{key}.safetensors"


def _provenance(run: Run | LayersRun, inputs: Inputs, taps: Sequence[str]) -> dict[str, Any]:
    """Return what a model says of the activations that it was trained on, and of the run."""
    attributes = {key: inputs.store.attributes[key] for key in (*taps, *STARTS)}
    return {**attributes, "split_hash": inputs.split_hash, "seed": run.seed, "variant": run.variant}


def _reader(
    inputs: Inputs, settings: TrainSettings, buffer_tokens: int, seed: int, device: torch.device, ranks: Ranks
) -> ShuffledReader:
    """Return what gives this process's share of each batch of one layer's training tokens."""
    return ShuffledReader(
        inputs.store,
        inputs.documents["train"],
        batch_size=settings.batch_size,
        buffer_tokens=buffer_tokens,
        seed=seed,
        device=device,
        share=ranks.data.share(settings.batch_size),
    )
