"""The folder that holds everything `up` keeps: ours by its marker, one process's by its lock, with its secrets."""

import contextlib
import errno
import fcntl
import os
import pwd
import secrets
import string
from pathlib import Path

import msgspec

FOLDER_FORMAT = 1
MARKER = "taskbeam.json"


class FolderRefused(Exception):
    """This folder cannot be used; the message says why, in one line."""


class DataFolder:
    """The folder of all data: ours by its marker, this process's by its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: int | None = None

    def claim(self) -> None:
        """Raises FolderRefused where it belongs to somebody else, or to another `up`."""
        marker = self.path / MARKER
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            ours = marker.exists()
            if not ours and any(entry.name not in ("lock", f"{MARKER}.new") for entry in self.path.iterdir()):
                raise FolderRefused(f"{self.path} holds files that are not Taskbeam's: choose another with --data")
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # The number is for the person only: it is the lock that tells who has the folder.
                pid = os.read(self._lock, 20).decode(errors="replace").strip()
                owner = f" (process {pid})" if pid.isdecimal() else ""
                raise FolderRefused(f"{self.path} is in use by another `taskbeam up`{owner}") from None
            os.truncate(self._lock, 0)
            os.write(self._lock, str(os.getpid()).encode())
            if not marker.exists():
                self.remember(MARKER, {"format": FOLDER_FORMAT})
            self._check(marker)
        except (FileExistsError, NotADirectoryError) as error:
            raise FolderRefused(f"{self.path} is not a folder: choose another with --data") from error
        except OSError as error:
            raise FolderRefused(f"the data folder {self.path} cannot be used: {self._why(error)}") from error

    def _check(self, marker: Path) -> None:
        try:
            known = msgspec.json.decode(marker.read_bytes(), type=dict[str, int]).get("format", 0)
        except msgspec.MsgspecError:
            known = 0
        if known > FOLDER_FORMAT:
            raise FolderRefused(
                f"{self.path} is of a newer Taskbeam (format {known}, and this one knows {FOLDER_FORMAT}): "
                "use that one, or choose another folder with --data"
            )
        if known != FOLDER_FORMAT:
            raise FolderRefused(f"{marker} cannot be understood: choose another folder with --data")

    def _why(self, error: OSError) -> str:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            return str(error.strerror)
        with contextlib.suppress(OSError, KeyError):
            owner = self.path.stat().st_uid
            if owner != os.geteuid():
                return f"{error.strerror}, it belongs to {pwd.getpwuid(owner).pw_name}; choose another with --data"
        return f"{error.strerror}; choose another with --data"

    def secrets(self) -> dict[str, str]:
        """The token and signing keys of our own dispatcher, made the first time. Raises FolderRefused."""
        known = self.recall("secrets.json")
        if not known:
            known = {
                "QSTASH_TOKEN": secrets.token_urlsafe(32),
                "QSTASH_CURRENT_SIGNING_KEY": _signing_key(),
                "QSTASH_NEXT_SIGNING_KEY": _signing_key(),
            }
            self.remember("secrets.json", known)
        return known

    def recall(self, name: str) -> dict[str, str]:
        """What remember() wrote last under this name; {} before the first time. Raises FolderRefused."""
        path = self.path / name
        try:
            return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            raise FolderRefused(f"{path} cannot be read: {error}") from error

    def remember(self, name: str, values: dict[str, str] | dict[str, int]) -> None:
        """Write a small file, readable by us only; whole or not at all. Raises FolderRefused."""
        part = self.path / f"{name}.new"
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(msgspec.json.encode(values))
                file.flush()
                os.fsync(file.fileno())
            part.rename(self.path / name)
        except OSError as error:
            raise FolderRefused(f"{part} cannot be written: {error.strerror}") from error


def _signing_key() -> str:
    return "sig_" + "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(28))
