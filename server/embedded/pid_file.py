"""What a Postgres that was killed leaves behind: pid files, whose pids may be somebody else's by now.

Postgres believes such a file when a process of that number lives, whoever it is, and refuses to start. Processes of the
dead server that still write to the cluster are found by Postgres itself, by the shared memory they hold.
"""

import contextlib
import time
from pathlib import Path

from server.embedded.children import ChildFailed

ORPHAN_SECONDS_MAX = 15.0


def release_pid_files(cluster: Path, sockets: Path) -> None:
    """Wait for a server of this cluster that is ending, then take its files away.

    To be called by whoever holds the data folder. No process is ever signalled. Raises ChildFailed where one still
    runs, and OSError.
    """
    pid_file = cluster / "postmaster.pid"
    deadline = time.monotonic() + ORPHAN_SECONDS_MAX
    while (pid := _pid_in(pid_file)) is not None and _works_in(pid, cluster):
        if time.monotonic() > deadline:
            raise ChildFailed(f"another Postgres (process {pid}) is running on {cluster}: end it with kill -INT {pid}")
        time.sleep(0.05)
    for stale in (pid_file, *sockets.glob(".s.PGSQL.*")):
        stale.unlink(missing_ok=True)


def _pid_in(pid_file: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return abs(int(pid_file.read_text(errors="replace").splitlines()[0]))
    return None


def _works_in(pid: int, cluster: Path) -> bool:
    """Whether it is a server of this cluster: that is the folder it works in."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cwd").samefile(cluster)
    return False
