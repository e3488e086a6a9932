"""Does a foreign transcoder belong to these activations? And in whose units does it read them?"""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from transcoders.core.errors import UserError
from transcoders.dictionary.transcoder import Transcoder

log = logging.getLogger(__name__)


def fitted(model: Transcoder, name: str, store: Mapping[str, Any]) -> Transcoder:
    """Return the transcoder as it reads our x; ``store`` holds the attributes of the activations.

    Gemma Scope reads the norm's output before the gain g, so ``W x / g`` becomes ``(W / g) x``.

    Raises:
        UserError: it is as wide as another model, or needs a gain that the store does not know.
    """
    config, d_model = model.config, store["d_model"]
    if (config.d_in, config.d_out) != (d_model, d_model):
        raise UserError(
            f"{name}: reads {config.d_in} and predicts {config.d_out} numbers, but {store['model']} has d_model = "
            f"{d_model}; it is another model's"
        )
    ours, theirs = str(store["model"]).rstrip("/").split("/")[-1], config.provenance.get("model")
    if theirs and theirs.split("/")[-1] != ours:
        log.warning("%s: was trained on %s; these are activations of %s", name, theirs, store["model"])
    if config.provenance.get("gain_applied", True):
        return model
    if store.get("input_gain") is None:
        raise UserError(
            f"{name}: reads the norm's output before its gain, which the activations do not tell; run "
            "`dvc repro -f collect`, or choose a transcoder of this model"
        )
    gain = torch.tensor(store["input_gain"], device=model.W_enc.device)
    if not gain.all():
        raise UserError(f"{name}: the norm's gain is 0 in some dimensions, where what it reads cannot be told from x")
    changed = Transcoder(config.model_copy(update={"provenance": {**config.provenance, "gain_applied": True}}))
    state = {**model.state_dict(), "W_enc": (model.W_enc / gain).to(model.W_enc)}
    if config.skip:
        state["W_skip"] = (model.W_skip / gain).to(model.W_skip)
    changed.load_state_dict(state, assign=True)
    return changed.requires_grad_(False)
