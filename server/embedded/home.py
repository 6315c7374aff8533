"""Where Postgres keeps its files, and as whom it runs: as us, but for root, as whom it does not run at all.

Root's Postgres runs as `nobody`. Where that user cannot enter the data folder its files are in a place of its own,
which the data folder remembers: a folder that is moved takes its tasks along, and one made anew begins empty.
"""

import contextlib
import hashlib
import os
import pwd
import secrets
import stat
from pathlib import Path

from server.embedded.children import ChildFailed

# Where root's Postgres keeps its files when `nobody` cannot enter the folder that was asked for.
ELSEWHERE = Path("/var/lib/taskbeam")
PLACE = "postgres.place"


def server_user() -> int | None:
    """The uid Postgres has to run as; None for our own. Raises ChildFailed."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody").pw_uid
    except KeyError:
        raise ChildFailed(
            "Postgres does not run as root, and there is no user `nobody`: start as another user, or set DATABASE_URL"
        ) from None


def find_home(folder: Path, user: int | None) -> Path:
    """Where the cluster of the data folder `folder` lies, `folder` itself if it can. Raises OSError."""
    place = folder / PLACE
    with contextlib.suppress(FileNotFoundError):
        return Path(os.fsdecode(place.read_bytes().strip()))
    if user is None or can_enter(folder):
        return folder
    # Versions before this one had no note of it, and a name that follows from the folder's.
    before = ELSEWHERE / hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    home = before if (folder / "log").exists() and before.exists() else ELSEWHERE / secrets.token_hex(8)
    for made in (ELSEWHERE, home):
        made.mkdir(parents=True, exist_ok=True)
        made.chmod(0o711)  # whatever our umask is
    note = place.with_suffix(".new")
    note.write_bytes(os.fsencode(home))
    note.rename(place)
    return home


def can_enter(path: Path) -> bool:
    """Whether any user may go down to `path`, links followed."""
    real = path.resolve()
    for folder in (real, *real.parents):
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_IMODE(folder.stat().st_mode) & stat.S_IXOTH:
                return False
    return True


def check_owner(cluster: Path, user: int | None) -> None:
    """Raises ChildFailed where the cluster is somebody else's, for whom Postgres would refuse to start."""
    owner = cluster.stat().st_uid
    if owner != (os.geteuid() if user is None else user):
        raise ChildFailed(f"the database in {cluster} belongs to {_name(owner)}: start as that user")


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
