"""Stage `words`: the words of a layer's absorption task with their activations and the probes on them."""

from stages.common.entry import entry, number_argument
from stages.common.inputs import open_inputs
from stages.common.params import StageParams
from stages.common.paths import MODEL, words_of
from transcoders.absorption.settings import AbsorptionSettings
from transcoders.absorption.words import NO_TASK, fit_probes, read_words, save_task
from transcoders.core.devices import resolve_device
from transcoders.language.model import load_bridge, load_tokenizer
from transcoders.language.taps import tap_of
from transcoders.language.tokens import recorded_start


class Params(StageParams):
    """What decides this stage."""

    absorption: AbsorptionSettings
    device: str


def work(layer: int) -> None:
    """Run the model on words and write them with their probes to data/words/layer_<layer>.safetensors."""
    params = Params.read()
    if not params.absorption.words:
        save_task(words_of(layer), *NO_TASK)
        return
    device = resolve_device(params.device)
    inputs = open_inputs(layer, device)
    tap, bridge = tap_of(inputs.store.attributes), load_bridge(MODEL, device)
    tokenizer = load_tokenizer(MODEL)
    start = recorded_start(tokenizer, inputs.store.attributes).ids
    task = read_words(bridge, tap, tokenizer, start, params.absorption)
    save_task(words_of(layer), task, fit_probes(task))


if __name__ == "__main__":
    layer = number_argument(__doc__, "layer")
    entry(lambda: work(layer))
