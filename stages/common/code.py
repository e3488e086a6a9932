"""The hash of a stage's code: the same folders decide what DVC reruns and what an interrupted run may continue."""

from collections.abc import Iterator
from pathlib import Path

from transcoders.core.files import files_hash, read_yaml

ROOT = Path(__file__).parents[2]
"""The repository whose code runs, wherever it runs."""
PIPELINE = Path("dvc.yaml")
CODE = ("stages/", "transcoders/")


def code_of(stage: str, root: Path = ROOT) -> str:
    """Return a hash of every file in the folders of code that dvc.yaml lists among the deps of ``stage``."""
    return files_hash(files_of(code_deps(stage, root), root), root)


def code_deps(stage: str, root: Path = ROOT) -> list[str]:
    """Return the deps of ``stage`` in dvc.yaml that are code."""
    stages = read_yaml(root / PIPELINE, str(PIPELINE))["stages"]
    return [dep for dep in stages[stage]["deps"] if dep.startswith(CODE)]


def files_of(deps: list[str], root: Path = ROOT) -> Iterator[Path]:
    """Yield the files that ``deps`` name or hold, relative to ``root``; bytecode is none of them."""
    for dep in deps:
        path = root / dep
        for file in path.rglob("*") if path.is_dir() else (path,):
            if file.is_file() and "__pycache__" not in file.parts:
                yield file.relative_to(root)
