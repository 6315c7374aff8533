"""The folders of Unix sockets: beside the data where their path will do, else in the temporary folder.

The kernel takes 107 bytes for the path of a socket, and lists and URLs of them are apart by commas and spaces. The
name in the temporary folder follows from the data folder's, so that a crash leaves one there at most, to be used again.
"""

import hashlib
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

from server.embedded.children import ChildFailed

PATH_BYTES_MAX = 107
# `/.s.PGSQL.5432` is the longest that comes after it.
FOLDER_BYTES_MAX = PATH_BYTES_MAX - 14
PLAIN = re.compile(r"[A-Za-z0-9/._@+=-]+", re.ASCII)


class SocketFolder:
    """Where the sockets of one service lie, for nobody but its user: `path`, after `prepare()`."""

    def __init__(self, wanted: Path, user: int | None = None) -> None:
        """`user` is the uid of the service where that is not ours."""
        self._wanted = wanted
        self._user = user
        self.path = wanted if _fits(wanted) else self._elsewhere()

    def prepare(self) -> None:
        """Make it. Raises ChildFailed where somebody else has it, and OSError."""
        self.path.mkdir(mode=0o700, exist_ok=True)
        found = self.path.lstat()
        allowed = {os.geteuid(), os.geteuid() if self._user is None else self._user}
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in allowed:
            raise ChildFailed(f"{self.path} belongs to somebody else: remove it, or set TMPDIR to a folder of yours")
        self.path.chmod(0o700)
        if self._user is not None:
            os.chown(self.path, self._user, -1)

    def remove(self) -> None:
        """Leave nothing in the temporary folder. Idempotent."""
        if self.path != self._wanted:
            shutil.rmtree(self.path, ignore_errors=True)

    def _elsewhere(self) -> Path:
        name = f"taskbeam-{hashlib.sha256(os.fsencode(self._wanted)).hexdigest()[:16]}"
        for place in (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")):  # noqa: S108
            if os.access(place, os.W_OK | os.X_OK) and _fits(place / name) and self._reaches(place):
                return place / name
        raise ChildFailed(f"the path {self._wanted} is too long for a socket: set TMPDIR, or choose a shorter --data")

    def _reaches(self, place: Path) -> bool:
        return self._user is None or all(stat.S_IMODE(p.stat().st_mode) & stat.S_IXOTH for p in (place, *place.parents))


def _fits(path: Path) -> bool:
    return PLAIN.fullmatch(str(path)) is not None and len(str(path)) <= FOLDER_BYTES_MAX
