import errno

import pytest

from stages.entry import entry
from transcoders.errors import UserError
from transcoders.files import fingerprint, replacing, rounded, write_json


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
