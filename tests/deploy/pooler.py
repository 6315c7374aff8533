"""The real PgBouncer before a Postgres of the tests, as an unprivileged user on loopback."""

import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from server.embedded.children import end, spawn
from server.embedded.home import server_user
from server.embedded.postgres import EmbeddedPostgres
from tests.deploy.proxies import free_port

BINARY = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
READY_SECONDS_MAX = 10.0
CONFIGURATION = """
[databases]
* = host={sockets}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 500
query_wait_timeout = {wait_seconds}
server_login_retry = 1
ignore_startup_parameters =
"""


class PgBouncer:
    """For these users `size` connections of Postgres's each, for which a client waits `wait_seconds` at most."""

    def __init__(
        self,
        postgres: EmbeddedPostgres,
        folder: Path,
        users: Sequence[str],
        *,
        mode: str = "transaction",
        size: int = 1,
        wait_seconds: int = 5,
    ) -> None:
        folder.mkdir(parents=True)
        folder.chmod(0o755)
        self.port = free_port()
        self.log = folder / "log"
        self._configuration = folder / "pgbouncer.ini"
        listed = folder / "users"
        listed.write_text("".join(f'"{name}" ""\n' for name in users))
        (sockets,) = parse_qs(urlsplit(postgres.url("postgres")).query)["host"]
        self._configuration.write_text(
            CONFIGURATION.format(
                sockets=sockets, port=self.port, users=listed, mode=mode, size=size, wait_seconds=wait_seconds
            )
        )
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, name: str, user: str) -> str:
        return f"postgres://{user}@127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        assert BINARY is not None
        # Each start says so once more.
        starts = 1 + (self.log.read_text().count("process up") if self.log.exists() else 0)
        with self.log.open("ab") as output:
            self._process = spawn([BINARY, str(self._configuration)], user=server_user(), output=output)
        deadline = time.monotonic() + READY_SECONDS_MAX
        while self.log.read_text().count("process up") < starts:
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        """At once: clients and transactions under way are cut."""
        if self._process is not None:
            end([self._process], signal.SIGKILL, 5)
            self._process = None
