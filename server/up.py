"""`taskbeam up`: everything on one machine, in the foreground, ended together.

The supervisor owns what must not be lost when a part dies: the data folder's lock, the listening sockets, the
secrets. Parts that the settings replace (DATABASE_URL, REDIS_URL, QSTASH_TOKEN, GENERATOR_URL) are not started.
What it does when something goes wrong is in docs/up.md.
"""

import asyncio
import contextlib
import http.client
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import asyncpg
import msgspec

from server.clock import Clock
from server.contradictions import far_qstash_problems
from server.db import explain
from server.dispatch.moved import Addresses, follow_move, hand_back
from server.dispatch.step import follow_step
from server.embedded.children import ChildFailed, end, ours, spawn
from server.embedded.ending import Ending, Stopped
from server.embedded.folder import DataFolder, FolderRefused
from server.embedded.listeners import CannotListen, open_listener
from server.embedded.part import Part
from server.embedded.postgres import SUPERUSER, EmbeddedPostgres
from server.embedded.redis import EmbeddedRedis, find_binary
from server.embedded.space import Space
from server.embedded.terminal import occupy_standard_files, say, warn
from server.migrate import LOGIN_ROLE, MigrationRefused, create_login_role, migrate
from server.settings import InvalidSettings, Settings

DATABASE = "taskbeam"
ADDRESSES = "addresses.json"
READY_SECONDS_MAX = 60.0
NO_REDIS = "no Redis on this machine: changes travel by Postgres notices (install redis-server, or set REDIS_URL)"
STOP_SECONDS_MAX = 3.5
LOOK_SECONDS = 0.1
DATABASE_FAILURES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError)

T = TypeVar("T")


class CannotStart(Exception):
    """Why `up` stops at once, in one line."""


def run_up(overrides: Mapping[str, str]) -> int:
    """Run until a signal comes; the exit code. `overrides` are settings given on the command line.

    Raises InvalidSettings.
    """
    occupy_standard_files()
    env = {**os.environ, **overrides}
    settings = Settings.from_env(env)
    ending = Ending()
    supervisor = Supervisor(settings, env, ending)
    try:
        ending.listen()
        supervisor.start()
        say(supervisor.banner())
        while True:
            supervisor.watch()
    except Stopped:
        return 0
    except (CannotListen, CannotStart, ChildFailed, FolderRefused, MigrationRefused) as error:
        warn(str(error))
        return 1
    except OSError as error:  # the disk is full, or something that should be ours is not
        warn(f"{error.filename or settings.data_dir}: {error.strerror or error}")
        return 1
    finally:
        ending.begin()
        supervisor.stop()


class Supervisor:
    """Starts the parts in order, watches them, ends them in the reverse order."""

    def __init__(self, settings: Settings, env: Mapping[str, str], ending: Ending) -> None:
        self._settings = settings
        self._env = dict(env)
        self._ending = ending
        self._folder = DataFolder(settings.data_dir)
        self._space = Space(self._folder.path)
        self._clock = Clock()
        self._stepped = 0.0
        self._postgres: EmbeddedPostgres | None = None
        self._redis: EmbeddedRedis | None = None
        self._services: list[Part] = []
        self._processes: list[Part] = []
        self._sockets: list[socket.socket] = []
        self.origin = ""

    def start(self) -> None:
        """Raises CannotStart, CannotListen, FolderRefused, ChildFailed, MigrationRefused or OSError."""
        settings = self._settings
        if problems := far_qstash_problems(settings):
            raise InvalidSettings(problems)
        self._folder.claim()
        web = self._listen(settings.host, settings.port)
        address, port = web.getsockname()[:2]
        # Parts call each other by the address that is listened on: what a name stands for is not ours to say.
        origin = f"http://{_in_url(address)}:{port}"
        self._env.update(
            DATA_DIR=str(self._folder.path),
            PORT=str(port),
            LOG_FORMAT=self._env.get("LOG_FORMAT") or ("console" if sys.stderr and sys.stderr.isatty() else "json"),
        )
        self._start_services()
        asyncio.run(self._prepare_database())
        if self._redis is not None:
            self._redis.ready()
        generator = self._listen("127.0.0.1", 0) if settings.generator_url is None else None
        if generator is not None:
            self._env["GENERATOR_URL"] = f"http://127.0.0.1:{generator.getsockname()[1]}/"
        if settings.qstash_token is None:
            built_in = "" if generator is None else self._env["GENERATOR_URL"]
            asyncio.run(self._follow_move(Addresses(f"{origin}/", built_in)))
            self._add_dispatcher(origin)
        if generator is not None:
            self._add("generator", generator)
        # One is enough for trying it; with more, the supervisor of web processes is one part of ours.
        self._add("web", web, "web" if settings.web_processes in (None, 1) else "serve")
        self._await_web(web)
        self.origin = f"http://{_in_url(settings.host)}:{port}"

    def _start_services(self) -> None:
        if self._settings.database_url is None:
            self._postgres = postgres = EmbeddedPostgres(self._folder.path, say=warn)
            postgres.prepare()
            self._begin(Part(postgres.name, postgres.begin, postgres.log), self._services)
        if self._settings.redis_url is None and find_binary() is not None:
            self._redis = redis = EmbeddedRedis(self._folder.path)
            self._begin(Part(redis.name, redis.start, redis.log), self._services)
            self._env["REDIS_URL"] = redis.url()

    def _begin(self, part: Part, among: list[Part]) -> None:
        with self._ending.held():
            among.append(part)
            part.start()

    def _listen(self, host: str, port: int) -> socket.socket:
        listener = open_listener(host, port)
        self._sockets.append(listener)
        return listener

    async def _prepare_database(self) -> None:
        try:
            if self._postgres is None:
                await migrate(self._settings.direct_url or "")
            else:
                await self._create_database(self._postgres)
        except DATABASE_FAILURES as error:
            ours = "DATABASE_URL" if self._settings.database_direct_url is None else "DATABASE_DIRECT_URL"
            whose = ours if self._postgres is None else self._postgres.name
            raise CannotStart(f"{whose}: {explain(error, self._settings.direct_url or '')}") from error

    async def _create_database(self, postgres: EmbeddedPostgres) -> None:
        await postgres.ready()
        connection = await asyncpg.connect(postgres.url(SUPERUSER))
        try:
            if not await connection.fetchval("select exists (select from pg_database where datname = $1)", DATABASE):
                await connection.execute("create database taskbeam")
        finally:
            await connection.close()
        await migrate(postgres.url(DATABASE))
        await self._as_owner(create_login_role)
        await self._as_owner(hand_back)  # the folder's lock is ours: nobody else works on it
        self._env["DATABASE_URL"] = postgres.url(DATABASE, LOGIN_ROLE)

    async def _as_owner(self, work: Callable[["asyncpg.Connection[asyncpg.Record]"], Awaitable[T]]) -> T:
        url = self._settings.direct_url if self._postgres is None else self._postgres.url(DATABASE)
        connection = await asyncpg.connect(url, timeout=5)
        try:
            return await work(connection)
        finally:
            await connection.close()

    async def _follow_move(self, here: Addresses) -> None:
        """What was accepted before a restart must reach us where we are now."""
        before = self._folder.recall(ADDRESSES)
        now = msgspec.to_builtins(here)
        if before == now:
            return
        if before:
            old = msgspec.convert(before, Addresses)
            await self._as_owner(lambda connection: follow_move(connection, old, here))
        self._folder.remember(ADDRESSES, now)

    def _add_dispatcher(self, origin: str) -> None:
        listener = self._listen("127.0.0.1", 0)
        self._env.update(
            self._folder.secrets(),
            QSTASH_URL=f"http://127.0.0.1:{listener.getsockname()[1]}",
            CALLBACK_URL=self._settings.callback_url or origin,
        )
        self._add("dispatcher", listener)

    def _add(self, name: str, listener: socket.socket, command: str = "") -> None:
        fd = listener.fileno()
        argv = ours(command or name, "--fd", str(fd))
        self._begin(Part(name, lambda: spawn(argv, env=self._env, pass_fds=(fd,))), self._processes)

    def _await_web(self, listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        deadline = time.monotonic() + READY_SECONDS_MAX
        while time.monotonic() < deadline:
            self._look()
            if any(part.failures for part in (*self._services, *self._processes)):
                raise ChildFailed("a part did not start: what it said stands above")
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection(host, port, timeout=2)
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    connection.close()
                    return
            time.sleep(0.02)
        raise ChildFailed(f"the web process was not ready in {READY_SECONDS_MAX:.0f} seconds")

    def pid(self, name: str) -> int:
        """The process id of one of our parts. Raises StopIteration where there is none of that name."""
        return next(part.process.pid for part in self._processes if part.name == name and part.process)

    @property
    def database_urls(self) -> tuple[str, str]:
        """Of the database: as the processes have it, and as its owner. They hold passwords where one was configured."""
        url = self._env["DATABASE_URL"]
        return url, url if self._postgres is None else self._postgres.url(DATABASE)

    def banner(self) -> str:
        """What was started, where its data lies, and the address."""
        ours = [part.name for part in self._processes]
        lines = [
            f"Taskbeam: {', '.join(ours)}"
            + (", private Postgres" if self._postgres else "")
            + (", private Redis" if self._redis else ""),
            *([] if self._env.get("REDIS_URL") else [NO_REDIS]),
            f"data in {self._folder.path}; Ctrl-C ends everything",
            *([self._postgres.note] if self._postgres and self._postgres.note else []),
            f"ready {self.origin}",
        ]
        return "\n".join(lines)

    def watch(self) -> None:
        """Wait a moment, then start again what has ended, and see to the disk and the clock."""
        time.sleep(LOOK_SECONDS)
        self._look()
        if text := self._space.look(time.monotonic()):
            warn(text)
        self._follow_clock()

    def _look(self) -> None:
        for part in (*self._services, *self._processes):
            with self._ending.held():
                text = part.look(time.monotonic())
            if text:
                warn(text)

    def _follow_clock(self) -> None:
        step = self._clock.step()
        if step and self._postgres is not None:  # another machine's Postgres has another clock
            warn(f"the clock was put {'forward' if step > 0 else 'back'} by {abs(step):.0f} s: deadlines follow")
            self._stepped += step
        if self._stepped:
            with contextlib.suppress(*DATABASE_FAILURES):  # it is away: again in a moment
                asyncio.run(self._as_owner(lambda connection: follow_step(connection, self._stepped)))
                self._stepped = 0.0

    def stop(self) -> None:
        """End all, the database last. Idempotent."""
        for listener in self._sockets:
            listener.close()
        end([part.process for part in self._processes if part.process is not None], signal.SIGTERM, STOP_SECONDS_MAX)
        self._processes.clear()
        if self._redis is not None:
            self._redis.stop()
        if self._postgres is not None:
            self._postgres.stop()


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
