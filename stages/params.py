"""The schema of params.yaml: every stage reads all of it, so that any mistake stops every stage."""

import argparse
import os
import reprlib
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML

from transcoders.absorption.settings import AbsorptionSettings
from transcoders.activations.settings import SplitSettings
from transcoders.circuits.settings import CircuitSettings
from transcoders.collecting.settings import CollectSettings
from transcoders.core.errors import UserError
from transcoders.core.files import read_yaml
from transcoders.core.places import redacted
from transcoders.core.settings import Settings
from transcoders.distributed.settings import DistributedSettings
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.features.settings import FeatureSettings
from transcoders.language.settings import ModelSettings
from transcoders.training.settings import TrainSettings, VariantSettings

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
"""Of a variant: part of file names, of commands and of pages."""
Reference = Annotated[str, Field(pattern=r"^[^<>\x00-\x1f]+$")]
"""Of a transcoder: DVC's page of plots shows it and does not escape it."""

SHORT = reprlib.Repr()  # YAML's aliases make a few bytes a value of gigabytes
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother = 2, 100, 100


class RunSettings(Settings):
    """Which transcoders to train: every variant at every layer with every seed."""

    variants: list[str] = Field(min_length=1)
    layers: list[int] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)


class CompareSettings(Settings):
    """What stands beside the runs and the baselines."""

    official: list[Reference]
    """Transcoders of others: a folder, a URL, or ``org/repo:folder`` on the Hub; ``…@layer`` where neither tells it."""


class Params(Settings):
    """All of params.yaml."""

    model: ModelSettings
    device: str
    collect: CollectSettings
    split: SplitSettings
    runs: RunSettings
    variants: dict[Name, VariantSettings]
    train: TrainSettings
    evaluate: EvaluateSettings
    absorption: AbsorptionSettings
    features: FeatureSettings
    compare: CompareSettings
    circuits: CircuitSettings
    distributed: DistributedSettings = DistributedSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if isinstance(self.train.d_hidden, int) and self.train.k > self.train.d_hidden:
            raise ValueError(f"train.k: {self.train.k} is more than train.d_hidden {self.train.d_hidden}")
        for key, urls in (("collect.url", [self.collect.url or ""]), ("compare.official", self.compare.official)):
            if any("://" in url and redacted(url) != url for url in urls):
                raise ValueError(
                    f"{key}: a URL must hold no password and no query; credentials belong in the environment"
                )
        if self.collect.url is not None and "://" not in self.collect.url:
            raise ValueError(f"collect.url: {self.collect.url!r} is no URL such as s3://bucket/prefix; or use null")
        for layer in self.runs.layers:
            if layer not in self.collect.layers:
                raise ValueError(
                    f"runs.layers: layer {layer} is not in collect.layers {self.collect.layers}; add it there"
                )
        for seed in self.circuits.seeds:
            if seed not in self.runs.seeds:
                raise ValueError(f"circuits.seeds: seed {seed} is not in runs.seeds {self.runs.seeds}; add it there")
        for variant in self.runs.variants:
            if variant not in self.variants:
                raise ValueError(
                    f"runs.variants: {variant!r} is not defined under variants: " + ", ".join(self.variants)
                )
        return self

    @property
    def run_names(self) -> list[str]:
        """``<variant>-<layer>-<seed>`` of every run."""
        runs = self.runs
        return [f"{v}-{n}-{s}" for v in runs.variants for n in runs.layers for s in runs.seeds]


def parse(content: Any, source: str) -> Params:
    """Validate parsed YAML.

    Raises:
        UserError: all mistakes, on one line, each with its key, its value and what is allowed.
    """
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{source}: " + "; ".join(map(_explain, error.errors()))) from None


def _explain(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown parameter; remove it or correct its name ({_known(error['loc'])})"
    if error["type"] == "missing":
        return f"{key}: is missing"
    message = error["msg"].removeprefix("Value error, ")
    return message if not key else f"{key}: {SHORT.repr(error['input'])} is wrong: {message}"


def _known(location: tuple[Any, ...]) -> str:
    node: Any = Params
    for part in location[:-1]:
        field = getattr(node, "model_fields", {}).get(part)
        node = field.annotation if field else VariantSettings
    return "known: " + ", ".join(node.model_fields)


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and validate ``params.yaml`` of the current folder."""
    try:
        content = read_yaml(path, str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the root of the repository") from None
    return parse(content, str(path))


def apply_preset(name: str, folder: Path = Path("presets"), path: Path = Path("params.yaml")) -> None:
    """Merge ``presets/<name>.yaml`` into ``params.yaml``, keeping its comments.

    Raises:
        UserError: there is no such preset, or the result would not be valid.
    """
    file = folder / f"{name}.yaml"
    is_hub_id = "/" in name
    if not file.is_file() and not is_hub_id:
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise UserError(f"NAME={name}: there is no such preset; there are {known}, or any Hugging Face id")
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 120
    override = {"model": {"name": name, "revision": None}} if is_hub_id else YAML(typ="safe").load(file)
    params = yaml.load(path)
    _merge(params, override)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as out:
        yaml.dump(params, out)
    try:
        load_params(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _merge(target: Any, override: Any) -> None:
    for key, value in override.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        elif isinstance(value, list) and isinstance(target.get(key), list):
            target[key][:] = value  # in place, so that the list keeps its style and comments
        else:
            target[key] = value


def _check() -> None:
    load_params()


def main() -> None:
    """``python -m stages.params preset NAME`` merges a preset; ``check`` validates params.yaml."""
    from stages.entry import entry

    parser = argparse.ArgumentParser(description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="validate params.yaml")
    commands.add_parser("preset", help="merge presets/NAME.yaml").add_argument("name")
    arguments = parser.parse_args()
    if arguments.command == "preset":
        entry(lambda: apply_preset(arguments.name))
    else:
        entry(_check)


if __name__ == "__main__":
    main()
