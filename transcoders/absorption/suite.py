"""An absorption task put to a trained transcoder, to another one, or to an affine map."""

import logging
from collections.abc import Callable
from typing import TypeVar

from transcoders.absorption.dictionary import dictionary_of
from transcoders.absorption.measure import Absorption, absorption, skip_alone
from transcoders.absorption.prompts import categories_of
from transcoders.absorption.settings import COMPARED, AbsorptionSettings
from transcoders.absorption.words import Probes, Task
from transcoders.core.errors import UserError
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.reconstruction import Predictor
from transcoders.evaluation.settings import EvaluateSettings

NO_CATEGORY = {"categories": 0.0}
T = TypeVar("T")
log = logging.getLogger(__name__)


class CategoryTask:
    """Put a layer's words and probes to dictionaries, all under the same settings."""

    def __init__(self, task: Task, probes: Probes, settings: AbsorptionSettings, evaluation: EvaluateSettings) -> None:
        """Take what stage `words` wrote; ``evaluation`` says how intervals are drawn."""
        self._arguments = (task, probes, settings, evaluation)
        self._probes, self._settings = probes, settings

    def of_transcoder(self, model: Transcoder) -> Absorption | None:
        """Put the task to a transcoder that reads our x; return None where the layer's y shows no category."""
        return _unless_no_category(lambda: absorption(dictionary_of(model), *self._arguments))

    def of_affine(self, linear: Predictor) -> dict[str, float]:
        """Put the task to an affine map: all of it is the skip path's."""
        return _unless_no_category(lambda: skip_alone(lambda x: linear(x, x).y_hat, *self._arguments)) or NO_CATEGORY

    @property
    def categories_left_out(self) -> str:
        """Return the names of the categories whose probe on y is too poor to judge latents by."""
        f1 = dict(zip(self._probes.categories, self._probes.f1.tolist(), strict=True))
        least = self._settings.least_probe_f1
        return ", ".join(name for name in categories_of(self._settings.task) if name not in f1 or f1[name] < least)


def compared(metrics: dict[str, float]) -> dict[str, float]:
    """Return those of ``metrics`` that stand in the comparison."""
    return {key: metrics[key] for key in COMPARED if key in metrics}


def _unless_no_category(measure: Callable[[], T]) -> T | None:
    """Return what was measured; None, and a warning, where a layer's y shows no category (as in early layers)."""
    try:
        return measure()
    except UserError as error:
        log.warning("not measured: %s", error)
        return None
