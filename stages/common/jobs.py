"""What a training run is put together from: for `train`, and for `planted`, which trains on other activations."""

from pathlib import Path
from typing import Protocol

import torch

from stages.common.code import code_of
from stages.common.inputs import Inputs
from stages.common.paths import Run
from transcoders.activations.reader import Batch, ShuffledReader, ordered_batches
from transcoders.core.files import cache_folder, fingerprint
from transcoders.distributed.ranks import Ranks
from transcoders.training.config import config_of
from transcoders.training.settings import CheckpointSettings, TrainSettings, VariantSettings
from transcoders.training.start import Start, measure, sample_of
from transcoders.training.trainer import Job

STATISTICS_TOKENS = 262_144
VALIDATION_TOKENS = 16_384
TAPS = ("layer", "model", "model_hash", "hook_in", "hook_out", "hf_hook_in", "hf_hook_out", "gain_applied")
STARTS = ("context_start", "prepend_bos")


class Training(Protocol):
    """The parameters of a stage that trains."""

    train: TrainSettings
    variant: VariantSettings
    device: str
    checkpoints: CheckpointSettings


def job_of(stage: str, params: Training, run: Run, inputs: Inputs, device: torch.device, ranks: Ranks) -> Job:
    """Put together what ``stage`` trains, and on what; only the very same run continues its checkpoint."""
    settings, store = params.train, inputs.store
    train = inputs.train_batches(STATISTICS_TOKENS, torch.device("cpu"))
    start = Start(measure(train), sample_of(train), run.seed)
    provenance = {**{key: store.attributes[key] for key in (*TAPS, *STARTS)}, "split_hash": inputs.split_hash}
    provenance |= {"seed": run.seed, "variant": run.variant}
    config = config_of(settings, params.variant, store.d_model, start.statistics, provenance)
    reader = ShuffledReader(
        store,
        inputs.documents["train"],
        batch_size=settings.batch_size,
        buffer_tokens=settings.buffer_tokens,
        seed=run.seed,
        device=device,
        share=ranks.data.share(settings.batch_size),
    )
    held_out = ordered_batches(store, inputs.documents["validation"], VALIDATION_TOKENS, device)
    validation = [Batch(batch.x, batch.y) for batch in held_out]
    key, every = resume_key(stage, params, run, inputs), params.checkpoints.every
    return Job(config, settings, params.variant, reader, start, validation, key, device, every, ranks)


def resume_key(stage: str, params: Training, run: Run, inputs: Inputs) -> Path:
    """Name the checkpoint by everything that the result depends on."""
    settings = {name: getattr(params, name) for name in ("train", "variant")}
    decides = {name: value.model_dump() for name, value in settings.items()} | {"device": params.device}
    key = fingerprint(decides, run, inputs.store.attributes, inputs.split_hash, code_of(stage), torch.__version__)
    return cache_folder("checkpoints") / f"{key}.safetensors"
