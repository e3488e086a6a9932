"""Two pipelines started in one checkout at the same moment."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT, Checkout, Undisturbed
from test_secrets import SECRETS, clean

GOAL = "train@plt-1-0"


def checked_out(sources: Checkout, root: Path) -> Path:
    """This repository's code, with the tiny parameters, text and model."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("metrics/", "plots/", "tests/", "dvc.lock")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    shutil.copytree(sources.root, root, dirs_exist_ok=True)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


@pytest.mark.slow
def test_two_pipelines_at_once_end_in_the_bytes_of_one(sources: Checkout, few: Undisturbed, tmp_path: Path) -> None:
    root = checked_out(sources, tmp_path / "checkout")
    environment = {
        **os.environ,
        **SECRETS,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }

    def repro() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["dvc", "repro", GOAL],
            cwd=root,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    both = [repro(), repro()]
    said = [one.communicate(timeout=300)[0] for one in both]
    refused = [text for one, text in zip(both, said, strict=True) if one.returncode]
    assert len(refused) < 2, said
    assert all("lock" in text.splitlines()[-1] or "lock" in text for text in refused), refused
    last = repro()
    said.append(last.communicate(timeout=300)[0])
    assert last.returncode == 0, said[-1]
    for name, content in few.files.items():
        if not name.startswith(("data/features", "data/scores", "metrics/features")):
            assert (root / name).read_bytes() == content, name
    assert (
        "up to date"
        in subprocess.run(
            ["dvc", "status", GOAL], cwd=root, env=environment, capture_output=True, text=True, check=True
        ).stdout
    )
    assert (root / "dvc.lock").is_file()
    clean("".join(said), root, tmp_path / "cache")
