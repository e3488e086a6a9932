"""Stage `probing`: how well a few latents of each of a layer's transcoders tell the topics of documents."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stages.common.dictionaries import LayerParams, dictionaries_of
from stages.common.entry import entry, number_argument
from stages.common.inputs import open_inputs
from stages.common.paths import DOCUMENTS, Run, all_runs, probing_of
from transcoders.activations.reader import LabelledBatch, ordered_batches
from transcoders.core.devices import resolve_device
from transcoders.core.tables import read_parquet, six_digits, write_csv
from transcoders.probing.pooling import lengths, mean_latents, mean_outputs
from transcoders.probing.probes import labels_of_topics
from transcoders.probing.settings import ProbingSettings
from transcoders.probing.table import table_of
from transcoders.training.settings import plain_of


class Params(LayerParams):
    """What decides this stage."""

    probing: ProbingSettings


def work(layer: int) -> None:
    """Read the transcoders of ``layer`` and topics; write data/probing/layer_<layer>.csv, which may have no rows."""
    params = Params.read()
    settings, device = params.probing, resolve_device(params.device)
    inputs, topics = open_inputs(layer, device), read_parquet(DOCUMENTS, "collect", ["topic"])["topic"]

    def read() -> Iterator[LabelledBatch]:
        everyone = np.ones(len(topics), bool)
        return ordered_batches(inputs.store, everyone, settings.tokens, device) if settings.tokens else iter(())

    tokens = lengths(read(), len(topics))
    labels = labels_of_topics(topics, tokens, settings.least)
    plain, of_runs = plain_of(params.trained), all_runs([*params.trained], [layer], params.seeds)

    def features() -> Iterator[tuple[str, NDArray[np.float32], list[int | None]]]:
        yield "y", mean_outputs(read(), tokens, inputs.store.d_model)[labels.items].numpy(), [None]
        for name, model in dictionaries_of(params, layer, inputs, device):
            yield name, mean_latents(model, read(), tokens)[labels.items].numpy(), [*settings.k]

    against = {run.name: Run(plain, layer, run.seed).name for run in of_runs} if plain else {}
    write_csv(six_digits(table_of(features(), against, labels, settings)), probing_of(layer))


if __name__ == "__main__":
    layer = number_argument(__doc__, "layer")
    entry(lambda: work(layer))
