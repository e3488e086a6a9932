"""Stage `floor`: what descriptions score that have nothing to describe, those of a layer's untrained dictionary."""

from pydantic import Field

from stages.common.dictionaries import untrained_of
from stages.common.entry import entry, number_argument
from stages.common.inputs import open_inputs
from stages.common.params import StageParams
from stages.common.paths import MODEL, floor_of
from transcoders.core.devices import resolve_device
from transcoders.core.files import rounded, write_json
from transcoders.features.settings import FeatureSettings
from transcoders.features.study import study
from transcoders.training.settings import DHidden


class Params(StageParams):
    """What decides this stage."""

    d_hidden: DHidden = Field(alias="train.d_hidden")
    k: int = Field(alias="train.k")
    features: FeatureSettings
    device: str


def work(layer: int) -> None:
    """Study the dictionary that training starts from as a trained one; write data/floor/layer_<layer>.json."""
    params = Params.read()
    device = resolve_device(params.device)
    inputs = open_inputs(layer, device)
    untrained = untrained_of(inputs, params.d_hidden, params.k, device)
    result = study(untrained, inputs.store, inputs.documents["test"], MODEL, params.features, None)
    write_json(floor_of(layer), rounded(result.metrics))


if __name__ == "__main__":
    layer = number_argument(__doc__, "layer")
    entry(lambda: work(layer))
