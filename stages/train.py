"""Stage `train`: one transcoder on the training documents of one layer."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout
from pydantic import ValidationError

from stages.entry import entry
from stages.params import Params, load_params
from stages.runs import Inputs, Run, open_inputs, parse_run
from transcoders.activations.reader import Batch, ShuffledReader, ordered_batches
from transcoders.core.errors import UserError
from transcoders.core.files import cache_folder, fingerprint, replacing, source_hash, write_json
from transcoders.dictionary.transcoder import Transcoder, TranscoderConfig
from transcoders.distributed.launch import launched
from transcoders.distributed.ranks import Ranks, joined, local_device
from transcoders.training import start as initialise
from transcoders.training.loop import Result, Start, Trainer
from transcoders.training.sliced.assemble import save_whole
from transcoders.training.sliced.transcoder import SlicedTranscoder
from transcoders.training.together import train as train_together

log = logging.getLogger(__name__)
STATISTICS_TOKENS = 262_144
VALIDATION_TOKENS = 16_384
TRAINING_CODE = tuple(
    f"transcoders.{name}"
    for name in ("activations.", "devices", "dictionary.", "distributed.", "kernels.", "training.")
)


def run(which: Run) -> None:
    """Activations and split -> models/<run>/, metrics/train/<run>.json and, not reproducible, metrics/cost/."""
    params = load_params()
    device = local_device(params.device)
    with joined(device, params.distributed.latents) as ranks:
        _run(params, which, device, ranks)


def _run(params: Params, which: Run, device: torch.device, ranks: Ranks) -> None:
    if which.variant not in params.variants:
        raise UserError(f"variant {which.variant!r} is not defined under variants in params.yaml")
    inputs = open_inputs(which.layer, device)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it writes buffers twice
    runs = [which]
    if params.distributed.together:
        runs += ranks.decided(lambda: _others(params, which))
    train = list(ordered_batches(inputs.store, inputs.documents["train"], STATISTICS_TOKENS, torch.device("cpu")))
    statistics = initialise.measure(train)
    start = Start(statistics, initialise.sample_of(train), which.seed)
    del train
    settings = params.train
    reader = ShuffledReader(
        inputs.store, inputs.documents["train"],
        batch_size=settings.batch_size, buffer_tokens=settings.buffer_tokens,
        seed=which.seed, device=device, own=ranks.data.share(settings.batch_size),
    )  # fmt: skip
    held_out = ordered_batches(inputs.store, inputs.documents["validation"], VALIDATION_TOKENS, device)
    validation = [Batch(b.x, b.y) for b in held_out]
    live: dict[Trainer, Path] = {}
    for run in runs:
        config = _config(params, run, inputs, statistics)
        sliced = ranks.latents.size > 1
        model = (SlicedTranscoder(config, ranks.latents) if sliced else Transcoder(config)).to(device)
        variant, checkpoint = params.variants[run.variant], _checkpoint(params, run, inputs)
        trainer = Trainer(model, reader, settings, variant, start, validation, checkpoint, ranks)
        live[trainer] = Path("data/live") / f"{run.name}.csv"
    trainers = list(live)
    with ExitStack() as locks:
        for run in runs if ranks.first else ():
            locks.enter_context(_alone(run))
        result = train_together(trainers, lambda trainer: _write_history(trainer.history, live[trainer]))[0]
        _write_model(which, trainers[0].model, result, ranks)
        if ranks.first:
            _write_metrics(which, result)
        trainers[0].forget()


def _others(params: Params, which: Run) -> list[Run]:
    """Runs on the same batches that DVC would train next."""
    runs = [Run(variant, which.layer, which.seed) for variant in params.runs.variants if variant != which.variant]
    stages = {f"train@{run.name}": run for run in runs}
    command = [sys.executable, "-m", "dvc", "status", "--json", *stages]
    done = subprocess.run(command, capture_output=True, text=True, check=False) if runs else None
    if done is None or done.returncode:
        log.warning("distributed.together: `dvc status` does not say what is due; training %s alone", which.name)
        return []
    due = [run for stage, run in stages.items() if stage in json.loads(done.stdout)]
    if due:
        log.info("distributed.together: %s too, for the stages that follow", ", ".join(run.name for run in due))
    return due


@contextmanager
def _alone(which: Run) -> Iterator[None]:
    """Keep a second process off this run's outputs."""
    which.folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(which.folder.parent / f".{which.name}.lock", timeout=0):
            yield
    except Timeout:
        raise UserError(
            f"{which.name}: another process is training this very run; wait until it is done, or stop it and rerun to "
            "continue where it was"
        ) from None


def _config(params: Params, which: Run, inputs: Inputs, statistics: initialise.Statistics) -> TranscoderConfig:
    settings, variant = params.train, params.variants[which.variant]
    d_model = inputs.store.d_model
    size = settings.d_hidden
    d_hidden = size if isinstance(size, int) else int(size[:-1]) * d_model
    if settings.k > d_hidden:
        raise UserError(f"train.k: {settings.k} is more than train.d_hidden {size} = {d_hidden} latents")
    d_hidden = max(1, round(variant.d_hidden_share * d_hidden))
    k = max(1, round(variant.k_share * settings.k))
    attributes = inputs.store.attributes
    taps = ("layer", "model", "model_hash", "hook_in", "hook_out", "hf_hook_in", "hf_hook_out", "gain_applied")
    config = partial(
        TranscoderConfig, encoder=variant.encoder, d_in=d_model, d_out=d_model, d_hidden=d_hidden,
        k=k, prefixes=variant.sizes(d_hidden), prefix_k=variant.ks(k), skip=variant.skip,
        input_scale=statistics.x_scale, output_scale=statistics.y_scale,
        provenance={
            **{key: attributes[key] for key in taps},
            "split_hash": inputs.split_hash, "seed": which.seed, "variant": which.variant,
            "train": settings.model_dump(mode="json"),
        },
    )  # fmt: skip
    try:
        return config()
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"variants.{which.variant}: {reason}") from None


def _checkpoint(params: Params, which: Run, inputs: Inputs) -> Path:
    """Named by everything the result depends on, so that only the very same run continues it."""
    modules = {name: m for name, m in sys.modules.items() if name.startswith(TRAINING_CODE)}
    code = source_hash(*(modules[name] for name in sorted(modules)), sys.modules[__name__])
    settings = params.train.model_dump(exclude={"log_every", "checkpoint_every"})
    variant = params.variants[which.variant].model_dump()
    parts = (settings, variant, which, params.device, inputs.store.attributes, inputs.split_hash)
    return cache_folder("checkpoints") / f"{fingerprint(parts, code, torch.__version__)}.safetensors"


def _write_history(history: list[dict[str, Any]], path: Path) -> None:
    with replacing(path) as temporary:
        pd.DataFrame(history).to_csv(temporary, index=False)


def _write_model(which: Run, model: Transcoder, result: Result, ranks: Ranks) -> None:
    if not ranks.first and not (isinstance(model, SlicedTranscoder) and ranks.data.rank == 0):
        return
    with replacing(which.folder) if ranks.first else nullcontext(which.folder) as folder:
        _save(model, folder / "final", ranks)
        model.load_state_dict(result.best_weights)
        _save(model, folder, ranks)
        if ranks.first:
            _write_history(result.history, folder / "history.csv")


def _save(model: Transcoder, folder: Path, ranks: Ranks) -> None:
    if isinstance(model, SlicedTranscoder):
        save_whole(model, folder, first=ranks.first)
    else:
        model.save(folder)


def _write_metrics(which: Run, result: Result) -> None:
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
    stages = pd.DataFrame(result.history).groupby("stage").last()
    if len(stages) > 1:
        metrics |= {f"stage_{number}.validation_nmse": value for number, value in stages["validation_nmse"].items()}
    write_json(Path("metrics/train") / f"{which.name}.json", metrics)
    cost = {
        "tokens": last["tokens"],
        "seconds": round(result.seconds, 1),
        "tokens_per_second": round(last["tokens"] / result.seconds),
        "share_of_time_waiting_for_data": round(result.seconds_waited / result.seconds, 5),
    }
    write_json(Path("metrics/cost") / f"{which.name}.json", cost)


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    arguments = parse_run(__doc__)
    entry(lambda: launched(load_params().distributed, lambda: run(arguments)))
