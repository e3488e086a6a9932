"""Stage `families`: features with known members, to be planted into a layer's activations."""

from stages.common.entry import entry, number_argument
from stages.common.inputs import MOMENT_TOKENS, open_inputs
from stages.common.params import StageParams
from stages.common.paths import Run, families_of
from transcoders.core.devices import resolve_device
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.predictors import moments
from transcoders.planted.families import plant, save_families, typical_length
from transcoders.planted.settings import FamilySettings

REFERENCE = "topk", 0
"""Variant and seed of the run whose median latent says how large a feature is in y."""


class Params(StageParams):
    """What decides this stage."""

    families: FamilySettings
    device: str


def work(layer: int) -> None:
    """Read training tokens and the plain run, and write data/families/layer_<layer>.safetensors."""
    params = Params.read()
    device = resolve_device(params.device)
    variant, seed = REFERENCE
    train = open_inputs(layer, device).train_batches(MOMENT_TOKENS, device)
    length = typical_length(Transcoder.load(Run(variant, layer, seed).model, device), [batch.x for batch in train])
    of_tokens = moments(batch._replace(x=batch.x.cpu(), y=batch.y.cpu()) for batch in train)
    save_families(plant(of_tokens, length, params.families), families_of(layer))


if __name__ == "__main__":
    layer = number_argument(__doc__, "layer")
    entry(lambda: work(layer))
