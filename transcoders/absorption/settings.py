"""What counts as a readable category, as a main latent and as absorption."""

from typing import Literal

from pydantic import Field

from transcoders.core.settings import Settings

LEAST_MAIN_F1 = 0.5
"""A category has latents of its own if the probe on its main ones reaches this F1: else none can be absorbed."""
TASKS = {"letters": "first letters", "hypernyms": "hypernyms"}
COMPARED = ("mean_absorption", "full_absorption", "splitting", "main_f1", "categories_with_latent")
"""Metrics that stand in the comparison of runs, baselines and official transcoders."""


class AbsorptionSettings(Settings):
    """Say which task is put, and how; names and values in brackets are SAEBench's (arXiv 2503.09532)."""

    task: Literal["letters", "hypernyms"] = "letters"
    """What the words' categories are: first letters, or what WordNet places a noun beneath (*dog: animal*)."""
    shuffled: bool = False
    """Deal the categories anew among the words: the control, whose absorption says what the metric finds in nothing."""
    words: int = Field(default=12_000, ge=0)
    """Single-token words to use, the tokenizer's first (in Gemma's the frequent ones); 0 leaves the task out."""
    test: float = Field(default=0.3, gt=0, lt=1)
    """Share of the words that probes are judged on and absorption is measured on (0.2)."""
    least_probe_f1: float = Field(default=0.8, ge=0, le=1)
    """Categories that a probe on y predicts worse than this are left out (0.6)."""
    splitting_gain: float = Field(default=0.03, ge=0)
    """One more latent is a main latent if the F1 of the k-sparse probe rises by more (0.03)."""
    largest_k: int = Field(default=10, gt=0)
    """Main latents a category may have (10)."""
    absorber_cosine: float = Field(default=0.025, ge=0, le=1)
    """Least cosine of an absorber's decoder row to the probe (0.1; 0.025 for full absorption)."""
    absorbers: int = Field(default=3, gt=0)
    """How many latents may absorb together (3)."""
    least_share: float = Field(default=0.4, ge=0, le=1)
    """Least share of the probe's projection that they carry (0.4)."""
    near_parallel: float = Field(default=0.9, gt=0, lt=1)
    """Decoder rows with a larger cosine than this are said to be near-parallel."""
    seed: int = Field(default=0, ge=0)

    @property
    def task_name(self) -> str:
        """Return what tables call the task."""
        return TASKS[self.task] + (", dealt anew" if self.shuffled else "")
