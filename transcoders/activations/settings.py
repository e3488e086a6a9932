"""How the documents are split."""

from pydantic import Field, model_validator

from transcoders.core.settings import Settings


class SplitSettings(Settings):
    """Give the expected shares of the documents."""

    validation: float = Field(default=0.05, gt=0, lt=1)
    test: float = Field(default=0.1, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _leaves_some_to_train(self) -> "SplitSettings":
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together must be below 1")
        return self
