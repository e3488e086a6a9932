"""The file of prompts to trace."""

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from transcoders.core.errors import UserError
from transcoders.core.files import read_yaml
from transcoders.core.settings import Settings


class Prompt(Settings):
    """Hold a text that the model continues with ``answer`` rather than with ``foil``."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Part of file names."""
    task: str = Field(min_length=1)
    text: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    foil: str = Field(min_length=1)


class Steer(Settings):
    """Name a latent to hold, and the value that a dose of 1 is."""

    layer: int = Field(ge=0)
    latent: int = Field(ge=0)
    value: float
    first: int = Field(default=1, ge=1)
    """The position from which on it is held, in generated tokens too; the text's first token is 1, after BOS."""


class SteeredPrompt(Settings):
    """Hold a text that goes on while latents are held at several doses."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    text: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    """A single token, whose logit the doses are read by."""
    steer: Annotated[list[Steer], Field(min_length=1)] | None = None
    """None: the latents active in the text with the largest direct effects on the answer."""


P = TypeVar("P", Prompt, SteeredPrompt)


def read_prompts(path: Path, kind: type[P], key: str) -> list[P]:
    """Read the prompts in a YAML file, which parameter ``key`` names.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        content = read_yaml(path, f"{key}: {path}")
        prompts: list[P] = TypeAdapter(list[kind]).validate_python(content)  # type: ignore[valid-type]
    except FileNotFoundError:
        raise UserError(f"{key}: {path}: no such file") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{key}: {path}: {where}: {first['msg']}") from None
    names = [prompt.name for prompt in prompts]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not prompts:
        raise UserError(f"{key}: {path}: " + (f"names repeat: {repeated}" if prompts else "no prompts"))
    return prompts
