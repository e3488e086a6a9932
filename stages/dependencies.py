"""Which source files each stage imports, directly or not: the code half of dvc.yaml's deps.

``python -m stages.dependencies`` rewrites dvc.yaml; a test fails when it would change anything.
"""

import argparse
import ast
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.entry import entry

PACKAGES = ("stages", "transcoders")


def imported_files(file: Path) -> set[Path]:
    """``file`` and every file of this repository that it imports, anywhere in its code."""
    seen: set[Path] = set()
    waiting = [file]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += _direct_imports(current)
    return seen


def _direct_imports(file: Path) -> list[Path]:
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    found = []
    for name in names:
        parts = name.split(".")
        if parts[0] not in PACKAGES:
            continue
        for end in range(1, len(parts) + 1):
            stem = Path(*parts[:end])
            found += [p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()]
    return found


def complete(pipeline: Any) -> None:
    """Replace the source files in every stage's deps by those that its script imports."""
    for stage in pipeline["stages"].values():
        body = stage if "cmd" in stage else stage["do"]
        module = body["cmd"].split()[2]
        code = imported_files(Path(*module.split(".")).with_suffix(".py"))
        data = [dep for dep in body.get("deps", []) if not str(dep).endswith(".py")]
        body["deps"] = data + sorted(str(path) for path in code)


def run(path: Path = Path("dvc.yaml")) -> None:
    """Rewrite the deps of ``path``."""
    yaml = YAML()
    yaml.width = 120
    pipeline = yaml.load(path)
    complete(pipeline)
    with path.open("w") as out:
        yaml.dump(pipeline, out)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    entry(run)
