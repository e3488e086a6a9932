"""Stage `planted`: one transcoder trained on activations with planted families, and what it made of them."""

from itertools import chain

import torch
from pydantic import Field

from stages.common.entry import entry, run_arguments
from stages.common.inputs import open_inputs
from stages.common.jobs import job_of
from stages.common.params import StageParams
from stages.common.paths import Run, families_of, store_of
from transcoders.core.devices import resolve_device
from transcoders.core.files import replacing, rounded, write_json
from transcoders.core.tables import six_digits, write_csv
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.transcoder import Transcoder
from transcoders.distributed.ranks import ALONE
from transcoders.planted.controls import controls
from transcoders.planted.families import load_families
from transcoders.planted.measure import measure, planted_tokens
from transcoders.planted.settings import FamilySettings
from transcoders.planted.store import PlantedStore
from transcoders.training.history import metrics_of
from transcoders.training.settings import CheckpointSettings, TrainSettings, VariantSettings
from transcoders.training.start import Start
from transcoders.training.trainer import Trainer


class Params(StageParams):
    """What decides this stage; the last one decides no result."""

    families: FamilySettings
    draws: int = Field(alias="planted.draws", gt=0)
    train: TrainSettings
    device: str
    variant: VariantSettings = Field(alias="variants.{variant}")
    checkpoints: CheckpointSettings = CheckpointSettings()


def work(run: Run) -> None:
    """Plant families into the activations, train on them, and write data/planted/<run>/."""
    params = Params.read(variant=run.variant)
    device, families = resolve_device(params.device), load_families(families_of(run.layer))
    torch.use_deterministic_algorithms(True)

    def planted(draw: int) -> PlantedStore:
        return PlantedStore(store_of(run.layer), families, params.families.model_dump(), draw)

    inputs = open_inputs(run.layer, device)._replace(store=planted(0))
    job = job_of("planted", params, run, inputs, device, ALONE)
    start, config = job.start, job.config
    assert isinstance(start, Start), "of one layer"
    assert isinstance(config, TranscoderConfig), "of one layer"
    trainer = Trainer(job)
    result = trainer.train()
    model = Transcoder(config).to(device)
    model.load_state_dict(result.best_weights)
    held_out = chain.from_iterable(
        planted_tokens(planted(draw), inputs.documents["test"], device) for draw in range(params.draws)
    )
    table = measure(model.requires_grad_(False), held_out, families)
    metrics = metrics_of(result.history, result.best_step, result.best_nmse)
    with replacing(run.planted) as folder:
        write_csv(six_digits(table), folder / "families.csv")
        write_json(folder / "metrics.json", rounded(metrics | controls(start, config, families)))
    trainer.forget()


if __name__ == "__main__":
    arguments = run_arguments(__doc__)
    entry(lambda: work(arguments))
