"""Stage `model`: the base model as a Hugging Face folder in data/model."""

from stages.common.entry import entry, no_arguments
from stages.common.params import StageParams
from stages.common.paths import MODEL
from transcoders.core.inputs import checked_input, is_local
from transcoders.language.model import fetch_model
from transcoders.language.settings import ModelSettings


class Params(StageParams):
    """What decides this stage."""

    model: ModelSettings


def work() -> None:
    """Fetch and, if it comes as GGUF, convert the model that params.yaml names."""
    settings = Params.read().model
    if is_local(settings.name):
        checked_input("model.name", settings.name, "model")
    fetch_model(settings, MODEL)


if __name__ == "__main__":
    no_arguments(__doc__)
    entry(work)
