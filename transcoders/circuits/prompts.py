"""The file of prompts to trace."""

from pathlib import Path

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


def read_prompts(path: Path) -> list[Prompt]:
    """Read the prompts in a YAML file.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        prompts = TypeAdapter(list[Prompt]).validate_python(read_yaml(path, f"circuits.prompts: {path}"))
    except FileNotFoundError:
        raise UserError(f"circuits.prompts: {path}: no such file") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"circuits.prompts: {path}: {where}: {first['msg']}") from None
    names = [prompt.name for prompt in prompts]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not prompts:
        raise UserError(f"circuits.prompts: {path}: " + (f"names repeat: {repeated}" if prompts else "no prompts"))
    return prompts
