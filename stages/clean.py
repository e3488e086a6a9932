"""Stage `clean`: the untouched model on test documents, which every evaluation of a layer starts from."""

from pydantic import Field

from stages.common.entry import entry, number_argument
from stages.common.held_out import run_clean
from stages.common.inputs import open_inputs
from stages.common.params import StageParams
from stages.common.paths import MODEL, clean_of
from transcoders.core.devices import resolve_device
from transcoders.evaluation.clean import save_clean
from transcoders.evaluation.settings import Precision
from transcoders.language.model import load_bridge


class Params(StageParams):
    """What decides this stage."""

    loss_tokens: int = Field(alias="evaluate.loss_tokens", gt=0)
    precision: Precision = Field(alias="evaluate.precision")
    device: str


def work(layer: int) -> None:
    """Run the model clean, and with the MLP's output zero and its mean; write data/clean/layer_<layer>.safetensors."""
    params = Params.read()
    device = resolve_device(params.device)
    run = run_clean(open_inputs(layer, device), load_bridge(MODEL, device), params.loss_tokens, params.precision)
    save_clean(clean_of(layer), run)


if __name__ == "__main__":
    layer = number_argument(__doc__, "layer")
    entry(lambda: work(layer))
