"""What ``make`` installs, and when; programs that note their calls stand for python, pip, uv, dvc and pytest."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTE = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
case "$*" in *venv*) mkdir -p .venv/bin; for name in python dvc pytest; do cp "$0" .venv/bin/$name; done;; esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout below a folder with a space in its name, and a PATH with a noting python3 first."""
    root = tmp_path / "a b" / "checkout"
    root.mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "requirements-test.lock"):
        shutil.copy(ROOT / name, root / name)
    write_program(tmp_path / "programs" / "python3")
    return root


def write_program(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(NOTE)
    path.chmod(0o755)


def make(root: Path, *arguments: str) -> list[str]:
    """The calls of programs that ``make`` made."""
    calls = root.parent / "calls"
    calls.unlink(missing_ok=True)
    programs = root.parents[1] / "programs"
    environment = {"PATH": f"{programs}{os.pathsep}/usr/bin{os.pathsep}/bin", "CALLS": str(calls)}
    done = subprocess.run(["make", *arguments], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return calls.read_text().splitlines()


def test_running_installs_no_test_tools_and_testing_adds_them_once(checkout: Path) -> None:
    calls = make(checkout, "repro")
    assert [call.split(" --requirement ")[-1] for call in calls if "install" in call] == ["requirements.lock"]
    assert calls[-2:] == ["python -m stages.preset check", "dvc repro"]
    calls = make(checkout, "test")
    assert [call.split(" --requirement ")[-1] for call in calls if "install" in call] == ["requirements-test.lock"]
    assert calls[-1].startswith("pytest")
    assert not [call for call in make(checkout, "test") if "install" in call]


def test_uv_is_taken_where_it_is_installed_and_left_alone_where_asked(checkout: Path) -> None:
    write_program(checkout.parents[1] / "programs" / "uv")
    calls = make(checkout, "repro")
    assert [call.split()[:2] for call in calls if call.startswith("uv")] == [["uv", "venv"], ["uv", "pip"]]
    assert not [call for call in calls if "-m pip" in call]
    shutil.rmtree(checkout / ".venv")
    calls = make(checkout, "repro", "UV=")
    assert not [call for call in calls if call.startswith("uv")]
    assert [call for call in calls if "-m pip install" in call]
