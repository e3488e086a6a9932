"""What users bring lies below inputs/, where DVC watches it: parameters may name no other local file."""

import re
from pathlib import Path
from typing import Literal

from transcoders.core.errors import UserError

Kind = Literal["text", "model", "transcoders", "prompts"]


def checked_input(key: str, path: str | Path, kind: Kind) -> Path:
    """Return ``path``, the value of the parameter ``key``, if it lies in ``inputs/<kind>``.

    Raises:
        UserError: it lies elsewhere, so that no stage would notice when it changes, or there is nothing.
    """
    home = Path("inputs") / kind
    inside = home.resolve() in Path(path).resolve().parents
    if not inside:
        raise UserError(
            f"{key}: {str(path)!r} is outside {home}/, where nothing would notice that it changes; copy it there and "
            f"name it {home / Path(path).name}"
        )
    if not Path(path).exists():
        raise UserError(f"{key}: there is no {str(path)!r}")
    return Path(path)


def is_local(name: str) -> bool:
    """Say whether ``name`` is meant as a path of this machine: it exists here, or looks like nothing else.

    So do URLs that may read here: ``file://``, ``local://``, ``git://``, and those that wrap others (``zip://…::…``).
    """
    return re.match(r"[./~]|inputs/|(file|local|git)://|.*::", name) is not None or Path(name).exists()
