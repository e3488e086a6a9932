import errno
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stages.common.entry import entry
from transcoders.core.errors import UserError
from transcoders.core.files import cache_folder, fingerprint, replacing, rounded, write_json

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "no space")])
def test_what_was_there_survives_an_interrupted_write(tmp_path, error):
    path = tmp_path / "out.json"
    write_json(path, {"a": 1})
    before = path.read_bytes()

    def write():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises((KeyboardInterrupt, OSError)):
        write()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


def test_a_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "folder"
    (target / "old").mkdir(parents=True)
    with replacing(target) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [p.name for p in target.iterdir()] == ["new"]


@pytest.mark.parametrize("pid", [os.getpid(), 2**22 + 1], ids=["ours", "nobody's"])
@pytest.mark.parametrize("end", ["tmp", "old.tmp"])
def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path, pid, end):
    """Its number may be ours: in a container the same numbers come again and again."""
    left = tmp_path / f".folder.{platform.node()}.{pid}.{end}"
    (left / "half").mkdir(parents=True)
    with replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "whole").touch()
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["folder", "folder/whole"]


KILLED = """
import os, signal, sys
from pathlib import Path
from transcoders.core.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    for name in (".tmpa3X9kQ", "weights.81c7d5ba.partial", "weights.part"):
        temporary.with_name(name).write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_libraries_write_beside_a_temporary_goes_with_it(tmp_path):
    """zarr, safetensors and fsspec write beside the path that they are given, and rename."""
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "weights"], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".weights.")] == []
    with replacing(tmp_path / "weights") as temporary:
        temporary.write_bytes(b"all")
    assert [path.name for path in tmp_path.rglob("*")] == ["weights"]


def test_without_a_home_the_variable_for_the_cache_is_named(monkeypatch):
    """A container's user may have neither HOME nor an entry among the system's users."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(UserError, match=r"^XDG_CACHE_HOME: is not set, and there is no home folder.*; set it"):
        cache_folder("collect")


def test_what_another_living_process_writes_is_left_alone(tmp_path):
    other = tmp_path / f".a.json.{platform.node()}.{os.getppid()}.tmp"
    other.touch()
    write_json(tmp_path / "a.json", {})
    assert other.exists()


def test_a_folder_is_never_half_removed_in_its_place(tmp_path, monkeypatch):
    target = tmp_path / "folder"
    (target / "old").mkdir(parents=True)

    def removed(path):
        assert path.name.startswith("."), "another process would take what is left for the whole"
        os.rename(path, tmp_path / ".gone")

    monkeypatch.setattr(shutil, "rmtree", removed)
    with replacing(target) as temporary:
        temporary.mkdir()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("I/O error: No space left on device (os error 28)"), OSError),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device")]), OSError),
        (UserError("x: not readable (No such file (os error 2)); run y"), UserError),
        (RuntimeError("something else"), RuntimeError),
    ],
)
def test_a_full_disk_is_known_whatever_library_tells_it(tmp_path, error, expected):
    with pytest.raises(expected) as caught, replacing(tmp_path / "a"):
        raise error
    assert getattr(caught.value, "errno", None) == (errno.ENOSPC if expected is OSError else None)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("train.k: too big"), "error: train.k: too big"),
        (OSError(errno.ENOSPC, "no space", "data/x"), "error: the disk is full (data/x); free some, rerun"),
        (
            OSError(errno.EROFS, "read-only", "data/x"),
            "error: no permission to write or read (data/x: read-only); make it writable, rerun",
        ),
        (KeyboardInterrupt(), 130),
    ],
)
def test_a_stage_ends_with_one_line_and_a_status(error, status):
    def work():
        raise error

    with pytest.raises(SystemExit) as stopped:
        entry(work)
    assert stopped.value.code == status


def test_other_errors_are_not_hidden():
    def work():
        raise OSError(errno.EIO, "input/output error")

    with pytest.raises(OSError, match="input/output error"):
        entry(work)


def test_not_a_number_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})


def test_small_helpers():
    assert rounded({"a": 1.23456789}) == {"a": 1.23457}
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})
