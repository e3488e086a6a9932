"""Every safetensors file is written by one function."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from transcoders.core.tensors import save_tensors
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.transcoder import Transcoder

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_the_umask_says_who_may_read_weights(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        Transcoder(TranscoderConfig(d_in=3, d_out=3, d_hidden=8, k=2)).save(tmp_path)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("config.json", "transcoder.safetensors"), 0o666 & ~umask)


def test_the_bytes_are_the_librarys(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.ones(2, dtype=torch.bfloat16, requires_grad=True)}
    save_tensors(tmp_path / "ours", tensors, {"name": "x"})
    save_file({n: t.detach().contiguous() for n, t in tensors.items()}, tmp_path / "theirs", metadata={"name": "x"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


KILLED = """
import resource, signal, sys, torch
from pathlib import Path
from transcoders.core.tensors import save_tensors
tensors = {"w": torch.zeros(1 << 16)}
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
save_tensors(Path(sys.argv[1]), tensors)
"""
"""The limit on a file's size kills the process in the midst of writing."""


def test_a_kill_while_weights_are_written_leaves_nothing_in_the_next_output(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "w"], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGXFSZ
    assert not (tmp_path / "w").exists()
    assert list(tmp_path.rglob(".tmp*")), "what safetensors was writing is still there"
    save_tensors(tmp_path / "w", {"w": torch.ones(3)})
    assert [path.name for path in tmp_path.rglob("*")] == ["w"]
    assert torch.equal(load_file(tmp_path / "w")["w"], torch.ones(3))


def test_nothing_else_writes_safetensors() -> None:
    writers = re.compile(r"\bsave_file\(|\bserialize_file\(|\bmodel\.save_pretrained\(")
    files = [path for folder in ("transcoders", "stages") for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in files if writers.search(path.read_text())] == ["tensors.py"]
