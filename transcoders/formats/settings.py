"""Which transcoders of others stand beside ours."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from transcoders.core.places import refuse_secrets
from transcoders.core.settings import Settings

Reference = Annotated[str, Field(pattern=r"^[^<>\x00-\x1f]+$")]
"""Of a transcoder: DVC's page of plots shows it and does not escape it."""


class CompareSettings(Settings):
    """Say what stands beside the runs and the baselines."""

    official: list[Reference]
    """Transcoders of others: a folder below inputs/transcoders, a URL, or ``org/repo:folder`` on the Hub;
    ``…@layer`` where neither says it."""

    pca_ranks: list[Annotated[int, Field(gt=0)]] = Field(default_factory=list)
    """Ranks of PCA beside that of train.k, for a curve of it."""

    @model_validator(mode="after")
    def _urls_hold_no_secret(self) -> Self:
        for reference in self.official:
            refuse_secrets("official", reference)
        return self
