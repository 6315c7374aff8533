"""Whose the data folder is: told by its lock and its marker, never by a number in a file."""

import os
from pathlib import Path

import pytest

from server.embedded.folder import DataFolder, FolderRefused


def test_a_number_of_somebody_who_lives_is_no_claim(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    DataFolder(folder).claim()
    os.close(os.open(folder / "lock", os.O_RDONLY))
    for pid in (os.getppid(), 1, os.getpid()):
        (folder / "lock").write_text(str(pid))
        with pytest.raises(FolderRefused, match=rf"in use by another `taskbeam up` \(process {pid}\)$"):
            DataFolder(folder).claim()


def test_the_lock_of_a_dead_one_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    if (pid := os.fork()) == 0:
        DataFolder(folder).claim()
        os._exit(0)
    os.waitpid(pid, 0)
    assert (folder / "lock").read_text() == str(pid)
    (folder / "lock").write_text(str(os.getppid()))
    DataFolder(folder).claim()
    assert (folder / "lock").read_text() == str(os.getpid())


def test_a_start_that_was_cut_off_is_begun_again(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "lock").write_text("")
    (folder / "taskbeam.json.new").write_text('{"for')
    DataFolder(folder).claim()
    assert (folder / "taskbeam.json").read_text() == '{"format":1}'
    assert sorted(os.listdir(folder)) == ["lock", "taskbeam.json"]


@pytest.mark.parametrize(
    ("marker", "reason"),
    [
        (
            '{"format": 2}',
            r"is of a newer Taskbeam \(format 2, and this one knows 1\): use that one, or",
        ),
        ('{"format": 0}', "cannot be understood"),
        ("{}", "cannot be understood"),
        ("", "cannot be understood"),
        ("[1]", "cannot be understood"),
    ],
)
def test_a_marker_of_another_version_or_of_none(tmp_path: Path, marker: str, reason: str) -> None:
    (tmp_path / "taskbeam.json").write_text(marker)
    with pytest.raises(FolderRefused, match=reason):
        DataFolder(tmp_path).claim()
    assert (tmp_path / "taskbeam.json").read_text() == marker
    assert sorted(os.listdir(tmp_path)) == ["lock", "taskbeam.json"]


def test_one_that_may_not_be_written_says_whose_it_is(place: Path) -> None:
    """As another user; the child is not root, whom no permission stops."""
    folder = place / "data"
    folder.mkdir()
    (folder / "taskbeam.json").write_text('{"format":1}')
    folder.chmod(0o555)
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65_534)
            DataFolder(folder).claim()
        except FolderRefused as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    said = os.read(reader, 1000).decode()
    os.close(reader)
    folder.chmod(0o755)
    whose = ", it belongs to root" if os.geteuid() == 0 else ""
    assert said == f"the data folder {folder} cannot be used: Permission denied{whose}; choose another with --data"
