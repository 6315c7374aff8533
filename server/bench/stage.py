"""What is measured runs on: a private Postgres and Redis, people with tasks, and processes each on its own core.

fsync and synchronous_commit are as in the product, and are read from the server, not asserted. Redis listens on a
loopback port, since not all contenders speak to a socket file. Sign-in is on: each stream brings an access token.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import asyncpg
import jwt

from server.bench import machine
from server.bench.figures import Durability
from server.bench.machine import CannotMeasure
from server.embedded.children import ChildFailed, end, last_words, open_log, spawn
from server.embedded.listeners import BACKLOG
from server.embedded.postgres import SUPERUSER, EmbeddedPostgres
from server.embedded.redis import find_binary
from server.migrate import LOGIN_ROLE, create_login_role, migrate

DATABASE = "taskbeam"
ROOT = Path(__file__).parent.parent.parent
ISSUER, SECRET = "https://issuer.example.com", "secret-of-the-bench-0123456789abcdef"
KEY = "sig_benchbenchbenchbenchbenchben"
TASKS_A_USER = 50
READY_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 6.0
TOKEN_SECONDS = 86_400


class Task(NamedTuple):
    """Of a user, with the access token he asks by."""

    id: str
    user: str
    token: str


class Process:
    """A server that listens where `address` says."""

    def __init__(self, address: tuple[str, int], child: "subprocess.Popen[bytes]", listener: socket.socket | None):
        self.address = address
        self.child = child
        self.pid = child.pid
        self._listener = listener

    @property
    def origin(self) -> str:
        return f"http://{self.address[0]}:{self.address[1]}"

    def stop(self) -> None:
        """Idempotent."""
        end([self.child], signal.SIGTERM, STOP_SECONDS_MAX)
        if self._listener is not None:
            self._listener.close()


class Stage:
    """A context: everything is started within it and ended with it. Raises CannotMeasure and ChildFailed."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="taskbeam-bench-"))
        self.folder.chmod(0o755)  # root's Postgres runs as another user and must reach what is below
        self.server_cores, self.other_cores = machine.cores()
        self._postgres: EmbeddedPostgres | None = None
        self._processes: list[Process] = []
        self._redis: Process | None = None

    def __enter__(self) -> "Stage":
        try:
            machine.pin(os.getpid(), self.other_cores)
            self._postgres = EmbeddedPostgres(self.folder)
            self._postgres.start()
            self._redis = self._start_redis()
            asyncio.run(self._prepare_database(self._postgres))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        for process in self._processes:
            process.stop()
        if self._redis is not None:
            self._redis.stop()
        if self._postgres is not None:
            self._postgres.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        machine.pin(os.getpid(), self.server_cores | self.other_cores)

    # Services

    @property
    def redis_port(self) -> int:
        assert self._redis is not None  # noqa: S101  (inside the context it is there)
        return self._redis.address[1]

    @property
    def postgres_log(self) -> Path:
        assert self._postgres is not None  # noqa: S101
        return self._postgres.log

    def url(self, user: str = LOGIN_ROLE) -> str:
        """Of the database, as our processes have it, or as SUPERUSER."""
        assert self._postgres is not None  # noqa: S101
        return self._postgres.url(DATABASE, user)

    async def owner(self) -> "asyncpg.Connection[asyncpg.Record]":
        return await asyncpg.connect(self.url(SUPERUSER), timeout=5)

    async def _prepare_database(self, postgres: EmbeddedPostgres) -> None:
        await postgres.ready()
        connection = await asyncpg.connect(postgres.url(SUPERUSER))
        await connection.execute(f"create database {DATABASE}")
        await connection.close()
        await migrate(postgres.url(DATABASE))
        connection = await self.owner()
        await create_login_role(connection)
        await connection.close()

    def _start_redis(self) -> Process:
        binary = find_binary()
        if binary is None:
            raise CannotMeasure("no redis-server or valkey-server on this machine: install one")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = free.getsockname()
        argv = [str(binary), "--port", str(address[1]), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        redis = self._spawn([*argv, "--dir", str(self.folder)], "redis", self.other_cores, address)
        deadline = time.monotonic() + READY_SECONDS_MAX
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
                return redis
            time.sleep(0.02)
        raise ChildFailed(f"Redis did not start: {last_words(self.folder / 'log' / 'redis.log')}")

    def ask(self, statement: str, *arguments: object) -> Any:
        """One value, from the database as its superuser."""

        async def once() -> Any:
            owner = await self.owner()
            try:
                return await owner.fetchval(statement, *arguments)
            finally:
                await owner.close()

        return asyncio.run(once())

    def durability(self) -> Durability:
        return Durability(*[str(self.ask(f"show {name}")) for name in Durability.__struct_fields__])

    def versions(self) -> dict[str, str]:
        """Of the services."""
        said = subprocess.run(
            [str(find_binary()), "--version"], capture_output=True, text=True, timeout=10, check=False
        )
        redis = re.search(r"v=(\S+)", said.stdout)
        return {"postgres": str(self.ask("show server_version")), "redis": redis[1] if redis else said.stdout.strip()}

    # Processes

    def web(self, **settings: str) -> Process:
        """A web process of ours, ready, on the core of the server under test."""
        listener = self.listener()
        port = listener.getsockname()[1]
        env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LOG_LEVEL": "warning",
            "DATA_DIR": str(self.folder),
            "DATABASE_URL": self.url(),
            "REDIS_URL": f"redis://127.0.0.1:{self.redis_port}",
            "CALLBACK_URL": f"http://127.0.0.1:{port}",
            "AUTH_ISSUER": ISSUER,
            "AUTH_SECRET": SECRET,
            "QSTASH_URL": "http://127.0.0.1:9",  # nothing is dispatched
            "QSTASH_TOKEN": "token-of-the-bench",
            "QSTASH_CURRENT_SIGNING_KEY": KEY,
            "GENERATOR_URL": "http://127.0.0.1:9/",
            **settings,
        }
        argv = [sys.executable, str(Path(sys.argv[0]).absolute()), "web", "--fd", str(listener.fileno())]
        process = self.start(f"web{len(self._processes)}", argv, listener, env)
        self.await_ready(process, "/readyz")
        return process

    def listener(self) -> socket.socket:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(BACKLOG)
        return listener

    def start(
        self, name: str, argv: Sequence[str], listener: socket.socket, env: dict[str, str] | None = None
    ) -> Process:
        """A contender, which is handed the listening socket."""
        process = self._spawn(argv, name, self.server_cores, listener.getsockname(), listener, env)
        self._processes.append(process)
        return process

    def start_apart(self, name: str, argv: Sequence[str], address: tuple[str, int], cores: set[int]) -> Process:
        """A server that opens its port by itself, on these cores."""
        process = self._spawn(argv, name, cores, address)
        self._processes.append(process)
        return process

    def _spawn(
        self,
        argv: Sequence[str],
        name: str,
        cores: set[int],
        address: tuple[str, int],
        listener: socket.socket | None = None,
        env: dict[str, str] | None = None,
    ) -> Process:
        with open_log(self.folder / "log" / f"{name}.log") as log:
            fds = () if listener is None else (listener.fileno(),)
            child = spawn(argv, env=env, output=log, pass_fds=fds, cwd=ROOT)
        machine.pin(child.pid, cores)
        return Process(address, child, listener)

    def await_ready(self, process: Process, path: str) -> None:
        """Until a GET of it is answered with 200. Raises ChildFailed."""
        deadline = time.monotonic() + READY_SECONDS_MAX
        while time.monotonic() < deadline and process.child.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(process.origin + path, timeout=2):  # noqa: S310
                return
            time.sleep(0.02)
        logs = ", ".join(last_words(log) for log in (self.folder / "log").glob("*.log") if last_words(log))
        raise ChildFailed(f"a contender did not start: {logs or 'it said nothing'}")

    # People

    def people(self, tasks: int, tasks_a_user: int = TASKS_A_USER) -> list[Task]:
        """New tasks, of as many new users as it takes, all waiting for their callback."""
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": "authenticated",
            "role": "authenticated",
            "iat": now,
            "exp": now + TOKEN_SECONDS,
        }
        made: list[Task] = []
        while len(made) < tasks:
            user = str(uuid.uuid4())
            token = jwt.encode({**claims, "sub": user}, SECRET, algorithm="HS256")
            count = min(tasks_a_user, tasks - len(made))
            made += [Task(uuid.uuid4().hex[:22], user, token) for _ in range(count)]
        asyncio.run(self._insert(made))
        return made

    async def _insert(self, tasks: list[Task]) -> None:
        owner = await self.owner()
        try:
            await owner.execute(
                """insert into public.image_generations (task_id, user_id, prompt)
                   select t, u, 'a red fox under the moon' from unnest($1::text[], $2::uuid[]) as made (t, u)""",
                [task.id for task in tasks],
                [task.user for task in tasks],
            )
            await owner.execute("analyze public.image_generations; analyze public.task_events")
        finally:
            await owner.close()
