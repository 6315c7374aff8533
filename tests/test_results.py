"""Holds the store of pictures to being whole and on the disk before it says so, and to leaving nothing else behind."""

import os
from pathlib import Path

import pytest

from server import results

NAME = "A" * 43 + ".png"


def test_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's bytes, then its name, then the folder that holds the name: in this order a crash loses nothing."""
    did: list[tuple[str, str]] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(fd: int) -> None:
        did.append(("fsync", Path(f"/proc/self/fd/{fd}").readlink().name))
        fsync(fd)

    def noted_replace(path: Path, target: Path) -> Path:
        did.append(("replace", path.name))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    folder = tmp_path / "results"
    results.save(folder, NAME, b"picture")
    part = did[0][1]
    assert did == [("fsync", part), ("replace", part), ("fsync", "results")]
    assert part.startswith(".")
    assert results.NAME.fullmatch(part) is None
    assert [path.name for path in folder.iterdir()] == [NAME]
    assert (folder / NAME).read_bytes() == b"picture"


def test_again_and_away(tmp_path: Path) -> None:
    for _ in range(2):
        results.save(tmp_path, NAME, b"picture")
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    for _ in range(2):
        results.discard(tmp_path, NAME)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        results.save(tmp_path, NAME, b"picture")
    assert list(tmp_path.iterdir()) == []
