"""A disk that is full, and one that must not be written: one line, nothing half there, and a rerun mends it."""

import ctypes
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import FEW, Checkout, Undisturbed
from test_kills import nothing_half, same, same_times

RDONLY, REMOUNT, DETACH = 1, 32, 2


class Disk:
    """A small file system of its own."""

    def __init__(self, folder: Path, size: str) -> None:
        self.folder = folder
        self._mount(0, f"size={size}")

    def _mount(self, flags: int, options: str = "") -> None:
        library = ctypes.CDLL(None, use_errno=True)
        if library.mount(b"tmpfs", str(self.folder).encode(), b"tmpfs", ctypes.c_ulong(flags), options.encode()):
            pytest.skip(f"needs to mount a small disk: {os.strerror(ctypes.get_errno())}")

    def fill(self, *, left: int) -> None:
        """Leave ``left`` bytes."""
        room = os.statvfs(self.folder)
        with (self.folder / "filler").open("wb") as file:
            file.write(bytes(room.f_bavail * room.f_frsize - left))

    def empty(self) -> None:
        """Undo ``fill``."""
        (self.folder / "filler").unlink()

    def writable(self, yes: bool) -> None:
        """Whether anybody, root included, may write."""
        self._mount(REMOUNT | (0 if yes else RDONLY))

    def close(self) -> None:
        """Take it away."""
        ctypes.CDLL(None).umount2(str(self.folder).encode(), DETACH)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path, "64m")
    yield made
    made.close()


def moved(disk: Disk, checkout: Checkout) -> Checkout:
    """A copy of ``checkout`` there, with an empty cache there too."""
    shutil.copytree(checkout.root, disk.folder / "checkout")
    return checkout._replace(root=disk.folder / "checkout", cache=disk.folder / "cache")


def refused(checkout: Checkout, stage: str, beginnings: tuple[str, ...]) -> None:
    done = checkout.run(stage)
    assert done.status == 1, (stage, done)
    assert "Traceback" not in done.said, done.said[-3000:]
    assert done.said.splitlines()[-1].startswith(beginnings), done.said.splitlines()[-1]


def survives_a_full_disk(disk: Disk, undisturbed: Undisturbed, *shares: float) -> None:
    """With room for each of these ``shares`` of what a stage writes."""
    checkout = moved(disk, undisturbed.checkout)
    for stage in undisturbed.seconds:
        checkout.forget(stage)
        size = sum(len(undisturbed.files[name]) for name in undisturbed.files.keys() - checkout.files().keys())
        for share in shares:
            disk.fill(left=int(share * size))
            refused(checkout, stage, ("error: the disk is full (", "error: collect.tokens: the stores need "))
            nothing_half(undisturbed, checkout, stage)
            disk.empty()
        done = checkout.run(stage)
        assert done.status == 0, done.said[-3000:]
        same_times(undisturbed, checkout, stage)
    same(undisturbed, checkout)


def test_a_full_disk_is_told_in_one_line(disk: Disk, few: Undisturbed) -> None:
    survives_a_full_disk(disk, few, 0.6)


@pytest.mark.slow
def test_a_full_disk_is_told_by_every_stage(disk: Disk, everything: Undisturbed) -> None:
    survives_a_full_disk(disk, everything, 0.0, 0.3, 0.6)


def test_a_read_only_folder_is_told_in_one_line(disk: Disk, few: Undisturbed) -> None:
    checkout = moved(disk, few.checkout)
    disk.writable(False)
    for stage in FEW:
        refused(checkout, stage, ("error: no permission to write or read (",))
    same(few, checkout)
    disk.writable(True)
    for stage in FEW[:3]:
        assert checkout.run(stage).status == 0
    same(few, checkout)
