"""``python -m stages.preset apply NAME`` merges a preset into params.yaml; ``check`` validates the whole file."""

import argparse
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from stages.common.entry import entry
from stages.common.params import FILE, LayersRunSettings, Name, RunSettings, StageParams
from stages.common.spans import LayersRun
from transcoders.absorption.settings import AbsorptionSettings
from transcoders.activations.settings import SplitSettings
from transcoders.circuits.settings import CircuitSettings, InterventionSettings
from transcoders.classes.settings import ClassSettings
from transcoders.collecting.settings import CollectSettings
from transcoders.core.errors import UserError
from transcoders.core.files import merge_yaml, read_yaml, replacing
from transcoders.distributed.settings import DistributedSettings
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.features.settings import FeatureSettings
from transcoders.formats.settings import CompareSettings
from transcoders.language.settings import ModelSettings
from transcoders.planted.settings import FamilySettings, PlantedSettings
from transcoders.probing.settings import ProbingSettings
from transcoders.training.settings import CheckpointSettings, TrainSettings, VariantSettings

PRESETS = Path("presets")


class AllParams(StageParams):
    """All of params.yaml, with the rules that hold between its sections."""

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
    probing: ProbingSettings
    classes: ClassSettings
    families: FamilySettings
    planted: PlantedSettings
    clt: LayersRunSettings
    circuits: CircuitSettings
    interventions: InterventionSettings
    distributed: DistributedSettings = DistributedSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()

    @classmethod
    def parse(cls, content: Any, source: str, **item: str) -> Self:
        """Validate ``content`` as ``StageParams.parse`` does, and refuse sections that nobody reads."""
        if isinstance(content, dict) and (unknown := content.keys() - cls.keys()):
            known = ", ".join(cls.keys())
            lines = (f"{key}: unknown parameter; remove it or correct its name (known: {known})" for key in unknown)
            raise UserError(f"{source}: " + "; ".join(sorted(lines)))
        return super().parse(content, source, **item)

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        if isinstance(self.train.d_hidden, int) and self.train.k > self.train.d_hidden:
            raise ValueError(f"train.k: {self.train.k} is more than train.d_hidden {self.train.d_hidden}")
        for layer in self.runs.layers:
            if layer not in self.collect.layers:
                raise ValueError(f"runs.layers: {layer} is not in collect.layers {self.collect.layers}; add it there")
        for key, seeds in {"circuits": self.circuits.seeds, "interventions": self.interventions.seeds}.items():
            if absent := sorted({*seeds} - {*self.runs.seeds}):
                raise ValueError(f"{key}.seeds: {absent} are not in runs.seeds {self.runs.seeds}; add them there")
        of_sections = {"runs": self.runs.variants, "planted": self.planted.variants, "clt": self.clt.variants}
        for key, variants in of_sections.items():
            for variant in variants:
                if variant not in self.variants:
                    raise ValueError(
                        f"{key}.variants: {variant!r} is not defined under variants: " + ", ".join(self.variants)
                    )
                if (self.variants[variant].reach is None) == (key == "clt"):
                    raise ValueError(
                        f"{key}.variants: {variant!r}: those with a reach go into clt.variants, others not"
                    )
        for span in self.clt.spans:
            if missing := {*LayersRun("", span, 0).layers} - {*self.collect.layers}:
                raise ValueError(f"clt.spans: {span!r} has layers {sorted(missing)}, which collect.layers lacks")
        for layer in self.planted.layers:
            if layer not in self.runs.layers or "topk" not in self.runs.variants or 0 not in self.runs.seeds:
                raise ValueError(
                    f"planted.layers: the run topk-{layer}-0 says how large planted features are; train it (runs)"
                )
        return self


def apply_preset(name: str, folder: Path = PRESETS, path: Path = FILE) -> None:
    """Merge ``<folder>/<name>.yaml`` into the file ``path``, keeping its comments.

    A name with a slash is a model's on the Hugging Face Hub, and is written to ``model.name``.

    Raises:
        UserError: there is no such preset, or the result would not be valid.
    """
    file = folder / f"{name}.yaml"
    is_hub_id = "/" in name
    if not file.is_file() and not is_hub_id:
        known = ", ".join(sorted(preset.stem for preset in folder.glob("*.yaml")))
        raise UserError(f"NAME={name}: there is no such preset; there are {known}, or any Hugging Face id")
    override = {"model": {"name": name, "revision": None}} if is_hub_id else read_yaml(file, str(file))
    with replacing(path) as temporary:
        merge_yaml(path, override, temporary)
        AllParams.parse(read_yaml(temporary, str(path)), str(path))


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m stages.preset", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="validate the whole of params.yaml")
    commands.add_parser("apply", help="merge presets/NAME.yaml").add_argument("name")
    arguments = parser.parse_args()
    if arguments.command == "apply":
        entry(lambda: apply_preset(arguments.name))
    else:
        entry(AllParams.read)


if __name__ == "__main__":
    main()
