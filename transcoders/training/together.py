"""Training loops: several runs on the same batches, which are read once."""

import time
from collections.abc import Callable, Sequence

from tqdm import tqdm

from transcoders.activations.reader import Batch
from transcoders.training.loop import Result, Trainer


def train(trainers: Sequence[Trainer], on_validation: Callable[[Trainer], None] = lambda trainer: None) -> list[Result]:
    """Train all to the end, each from its checkpoint if there is one that fits.

    They share a reader, the scales of x and y, and the number of steps. What comes out is, byte for byte, what each
    alone would give. Finished checkpoints stay: ``begin`` finds the finished run in them, ``forget`` deletes them.
    """
    for trainer in trainers:
        trainer.begin()
    one = trainers[0]
    reader, config, first_step = one.reader, one.model.config, min(trainer.step for trainer in trainers)
    bar = tqdm(
        desc="train" if len(trainers) == 1 else f"train {len(trainers)} runs", unit="tok", unit_scale=True,
        total=sum(trainer.steps for trainer in trainers) * reader.batch_size,
        initial=sum(trainer.step for trainer in trainers) * reader.batch_size, disable=not one.ranks.first,
    )  # fmt: skip
    with bar:
        batches = reader.batches(first_step)
        for step in range(first_step, one.steps):
            began, waited = time.perf_counter(), reader.seconds_waited
            batch = next(batches)
            batch = Batch(batch.x / config.input_scale, batch.y / config.output_scale)
            taking = [trainer for trainer in trainers if trainer.step == step]
            for trainer in taking:
                trainer.seconds += (time.perf_counter() - began) / len(taking)
                trainer.seconds_waited += (reader.seconds_waited - waited) / len(taking)
            for trainer in taking:
                if trainer.take(batch) and one.ranks.first:
                    on_validation(trainer)
            rows = [trainer.history[-1] for trainer in taking if trainer.history]
            if rows and rows[0]["step"] == step + 1:
                shown = {
                    "loss": [f"{row['loss']:.4f}" for row in rows],
                    "dead": [f"{row['dead_fraction']:.1%}" for row in rows],
                }
                bar.set_postfix({name: " ".join(values) for name, values in shown.items()})
            bar.update(len(taking) * reader.batch_size)
    return [trainer.result() for trainer in trainers]
