"""Reading params.yaml: each stage names the keys that decide it, and a mistake there stops it with one line."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, ValidationError

from transcoders.core.errors import UserError
from transcoders.core.files import read_yaml
from transcoders.core.settings import Settings, explanation, value_at

FILE = Path("params.yaml")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
"""Of a variant: part of file names, of commands and of pages."""


class RunSettings(Settings):
    """Which transcoders to train: every variant at every layer with every seed."""

    variants: list[Name] = Field(min_length=1)
    layers: list[int] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)


class LayersRunSettings(Settings):
    """Which cross-layer transcoders to train: every variant over every span of layers with every seed."""

    variants: list[Name]
    spans: list[Annotated[str, Field(pattern=r"^[0-9]+(to[0-9]+)?(\+[0-9]+(to[0-9]+)?)*$")]]
    """Layers of collect.layers: ``0to17``, or ``3to5+9``."""
    seeds: list[int]
    tokens: int = Field(default=10_000, gt=0)
    """Stored test tokens for the reconstruction of each layer."""
    loss_tokens: int = Field(default=2048, gt=0)
    """Test tokens run through the model with the MLPs of all layers replaced."""


class StageParams(Settings):
    """The keys of params.yaml that decide one stage, which are the ``params`` of that stage in dvc.yaml.

    A field is a top-level key, or has the dotted key as its alias. ``{variant}`` in an alias stands for the
    run's variant. What decides no result (``runtime``) is read here too and is not in dvc.yaml.
    """

    model_config = ConfigDict(populate_by_name=True)

    @classmethod
    def keys(cls, **item: str) -> dict[str, str]:
        """Return the key of params.yaml of each field, with ``item`` filled in."""
        return {name: (field.alias or name).format_map(item) for name, field in cls.model_fields.items()}

    @classmethod
    def read(cls, path: Path = FILE, **item: str) -> Self:
        """Read and validate this stage's keys of ``path``.

        Raises:
            UserError: there is no such file, it is no YAML, or a value is missing, unknown or wrong: one
                line with every mistake, each with its key, its value and what is allowed.
        """
        try:
            content = read_yaml(path, str(path))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; run from the root of the repository") from None
        return cls.parse(content, str(path), **item)

    @classmethod
    def parse(cls, content: Any, source: str, **item: str) -> Self:
        """Validate this stage's keys of ``content``, which came from the file ``source``; raises as ``read``."""
        keys = cls.keys(**item)
        found = {name: value_at(content, key) for name, key in keys.items()}
        try:
            return cls.model_validate({name: values[0] for name, values in found.items() if values})
        except ValidationError as error:
            lines = (explanation(cls, keys, mistake) for mistake in error.errors())
            raise UserError(f"{source}: " + "; ".join(lines)) from None
