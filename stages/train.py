"""Stage `train`: one transcoder on the training documents of one layer."""

import os
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import torch
from pydantic import Field

from stages.common.code import code_of
from stages.common.entry import entry, run_arguments
from stages.common.inputs import Inputs, open_inputs
from stages.common.params import StageParams
from stages.common.paths import LIVE, Run
from transcoders.activations.reader import Batch, ShuffledReader, ordered_batches
from transcoders.core.files import alone, cache_folder, fingerprint, replacing, write_json
from transcoders.core.tables import write_csv
from transcoders.distributed.launch import launched
from transcoders.distributed.ranks import Ranks, joined, local_device
from transcoders.distributed.settings import DistributedSettings
from transcoders.training.config import config_of
from transcoders.training.history import metrics_of
from transcoders.training.settings import CheckpointSettings, TrainSettings, VariantSettings
from transcoders.training.start import Start, measure, sample_of
from transcoders.training.trainer import Job, Result, Trainer

STATISTICS_TOKENS = 262_144
VALIDATION_TOKENS = 16_384
TAPS = ("layer", "model", "model_hash", "hook_in", "hook_out", "hf_hook_in", "hf_hook_out", "gain_applied")
STARTS = ("context_start", "prepend_bos")


class Params(StageParams):
    """What decides this stage; the last two decide where and how it runs, and no result."""

    train: TrainSettings
    device: str
    variant: VariantSettings = Field(alias="variants.{variant}")
    distributed: DistributedSettings = DistributedSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()


def job_of(params: Params, run: Run, inputs: Inputs, device: torch.device, ranks: Ranks) -> Job:
    """Put together what to train, and on what."""
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
    key = resume_key(params, run, inputs)
    every = params.checkpoints.every
    return Job(config, settings, params.variant, reader, start, validation, key, device, every, ranks)


def resume_key(params: Params, run: Run, inputs: Inputs) -> Path:
    """Name the checkpoint by everything that the result depends on, so that only the very same run continues it."""
    settings = params.model_dump(include={"train", "variant", "device"})
    key = fingerprint(settings, run, inputs.store.attributes, inputs.split_hash, code_of("train"), torch.__version__)
    return cache_folder("checkpoints") / f"{key}.safetensors"


def write(run: Run, result: Result, ranks: Ranks) -> None:
    """Write the last and the best weights, the history and metrics; what it cost is for people, and no output."""
    with replacing(run.model) if ranks.first else nullcontext(run.model) as folder:
        result.sharing.save_model(result.model, folder / "final")
        result.model.load_state_dict(result.best_weights)
        result.sharing.save_model(result.model, folder)
        if ranks.first:
            write_csv(pd.DataFrame(result.history), folder / "history.csv")
            write_json(folder / "metrics.json", metrics_of(result.history, result.best_step, result.best_nmse))
    if ranks.first:
        write_json(LIVE / f"{run.name}.json", result.cost())


def work(run: Run) -> None:
    """Read activations and the split, train, and write models/<run>/."""
    params = Params.read(variant=run.variant)
    device = local_device(params.device)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it writes buffers twice
    with (
        joined(device, params.distributed.latents) as ranks,
        alone(run.model, "training it") if ranks.first else nullcontext(),
    ):
        trainer = Trainer(job_of(params, run, open_inputs(run.layer, device), device, ranks))
        live = LIVE / f"{run.name}.csv"
        result = trainer.train(lambda history: write_csv(pd.DataFrame(history.rows), live))
        if ranks.first or result.sharing.processes > 1:
            write(run, result, ranks)
        trainer.forget()


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    arguments = run_arguments(__doc__)
    entry(lambda: launched(Params.read(variant=arguments.variant).distributed, lambda: work(arguments)))
