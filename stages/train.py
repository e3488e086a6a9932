"""Stage `train`: one transcoder on the training documents of one layer."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from stages.entry import entry
from stages.params import Params, load_params
from stages.runs import Inputs, Run, open_inputs, parse_run
from transcoders import kernels
from transcoders.activations import reader as reader_module
from transcoders.activations.reader import Batch, ShuffledReader, ordered_batches
from transcoders.devices import resolve_device
from transcoders.dictionary import transcoder as transcoder_module
from transcoders.dictionary.transcoder import Transcoder, TranscoderConfig
from transcoders.errors import UserError
from transcoders.files import cache_folder, fingerprint, replacing, source_hash, write_json
from transcoders.training import initialise, loop, optimiser, schedule
from transcoders.training.loop import Result, Trainer

STATISTICS_TOKENS = 1_000_000
VALIDATION_TOKENS = 16_384
log = logging.getLogger(__name__)


def run(which: Run) -> None:
    """Activations and split -> models/<run>/ and metrics/train/<run>.json."""
    params = load_params()
    if which.variant not in params.variants:
        raise UserError(f"variant {which.variant!r} is not defined under variants in params.yaml")
    inputs = open_inputs(which.layer)
    device = resolve_device(params.device)
    torch.use_deterministic_algorithms(True)

    train = list(ordered_batches(inputs.store, inputs.documents["train"], STATISTICS_TOKENS, torch.device("cpu")))
    statistics = initialise.measure(train)
    sample = initialise.sample_of(train)
    del train
    model = Transcoder(_config(params, which, inputs, statistics)).to(device)
    initialise.initialise_(model, statistics, sample, which.seed)
    settings = params.train
    reader = ShuffledReader(
        inputs.store, inputs.documents["train"],
        batch_size=settings.batch_size, buffer_tokens=settings.buffer_tokens,
        seed=which.seed, device=device,
    )  # fmt: skip
    held_out = ordered_batches(inputs.store, inputs.documents["validation"], VALIDATION_TOKENS, device)
    trainer = Trainer(model, reader, settings, [Batch(b.x, b.y) for b in held_out], _checkpoint(params, which, inputs))
    live = Path("data/live") / f"{which.name}.csv"
    result = trainer.run(lambda history: _write_history(history, live))
    log.info("waited %.1f s for data", reader.seconds_waited)
    _write(which, model, result)


def _config(params: Params, which: Run, inputs: Inputs, statistics: initialise.Statistics) -> TranscoderConfig:
    settings, variant = params.train, params.variants[which.variant]
    d_model = inputs.store.d_model
    size = settings.d_hidden
    d_hidden = size if isinstance(size, int) else int(size[:-1]) * d_model
    if settings.k > d_hidden:
        raise UserError(f"train.k: {settings.k} is more than train.d_hidden {size} = {d_hidden} latents")
    attributes = inputs.store.attributes
    taps = ("layer", "model", "model_hash", "hook_in", "hook_out", "hf_hook_in", "hf_hook_out", "gain_applied")
    return TranscoderConfig(
        encoder=variant.encoder, d_in=d_model, d_out=d_model, d_hidden=d_hidden,
        k=settings.k, skip=variant.skip,
        input_scale=statistics.x_scale, output_scale=statistics.y_scale,
        provenance={
            **{key: attributes[key] for key in taps},
            "split_hash": inputs.split_hash, "seed": which.seed, "variant": which.variant,
            "train": settings.model_dump(mode="json"),
        },
    )  # fmt: skip


def _checkpoint(params: Params, which: Run, inputs: Inputs) -> Path:
    """Named by everything the result depends on, so that only the very same run continues it."""
    modules = [value for name, value in sys.modules.items() if name.startswith(f"{kernels.__name__}.")]
    code = source_hash(
        initialise, loop, optimiser, schedule, reader_module, transcoder_module, kernels,
        *sorted(modules, key=lambda module: module.__name__), sys.modules[__name__],
    )  # fmt: skip
    settings = params.train.model_dump(exclude={"log_every", "checkpoint_every"})
    variant = params.variants[which.variant].model_dump()
    parts = (settings, variant, which, params.device, inputs.store.attributes, inputs.split_hash)
    return cache_folder("checkpoints") / f"{fingerprint(parts, code, torch.__version__)}.safetensors"


def _write_history(history: list[dict[str, Any]], path: Path) -> None:
    with replacing(path) as temporary:
        pd.DataFrame(history).to_csv(temporary, index=False)


def _write(which: Run, model: Transcoder, result: Result) -> None:
    with replacing(which.folder) as folder:
        model.save(folder / "final")
        model.load_state_dict(result.best_weights)
        model.save(folder)
        _write_history(result.history, folder / "history.csv")
    last = result.history[-1]
    metrics = {
        "best_validation_nmse": result.best_nmse,
        "best_step": result.best_step,
        "final_validation_nmse": last["validation_nmse"],
        "final_train_nmse": last["nmse"],
        "l0": last["l0"],
        "dead_fraction": last["dead_fraction"],
        "steps": last["step"],
        "tokens": last["tokens"],
    }
    write_json(Path("metrics/train") / f"{which.name}.json", metrics)


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    arguments = parse_run(__doc__)
    entry(lambda: run(arguments))
