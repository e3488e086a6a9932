"""The dictionaries of a layer: the untrained one, which any figure of a trained one stands beside, and the runs."""

from collections.abc import Iterator

import torch
from pydantic import Field

from stages.common.inputs import MOMENT_TOKENS, Inputs
from stages.common.params import Name, StageParams
from stages.common.paths import all_runs
from transcoders.comparison.baselines import untrained_dictionary
from transcoders.dictionary.transcoder import Transcoder
from transcoders.training.settings import DHidden, VariantSettings, latents_of, plain_of

UNTRAINED = "untrained"


class LayerParams(StageParams):
    """What decides a stage that measures all dictionaries of a layer, beside its own settings."""

    run_variants: list[Name] = Field(alias="runs.variants")
    seeds: list[int] = Field(alias="runs.seeds")
    variants: dict[Name, VariantSettings]
    d_hidden: DHidden = Field(alias="train.d_hidden")
    k: int = Field(alias="train.k")
    device: str

    @property
    def trained(self) -> dict[str, VariantSettings]:
        """The variants that runs are of, the plain one first."""
        variants = {name: self.variants[name] for name in self.run_variants}
        plain = plain_of(variants)
        return dict(sorted(variants.items(), key=lambda item: item[0] != plain))


def untrained_of(inputs: Inputs, d_hidden: DHidden, k: int, device: torch.device) -> Transcoder:
    """Return the untrained dictionary of a layer, of so many latents of which ``k`` are active."""
    train = inputs.train_batches(MOMENT_TOKENS, device)
    return untrained_dictionary(train, latents_of(d_hidden, inputs.store.d_model), k)


def dictionaries_of(
    params: LayerParams, layer: int, inputs: Inputs, device: torch.device
) -> Iterator[tuple[str, Transcoder]]:
    """Yield the untrained dictionary of ``layer`` and that of each run, one at a time, with their names."""
    yield UNTRAINED, untrained_of(inputs, params.d_hidden, params.k, device)
    for run in all_runs([*params.trained], [layer], params.seeds):
        yield run.name, Transcoder.load(run.model, device)
