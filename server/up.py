"""`taskbeam up`: everything on one machine, in the foreground, ended together.

The supervisor owns what must not be lost when a part dies: the data folder's lock, the listening sockets, the
secrets. Parts that the settings replace (DATABASE_URL, REDIS_URL, QSTASH_TOKEN, GENERATOR_URL) are not started.
"""

import asyncio
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

import asyncpg
import click
import msgspec

from server.db import explain
from server.dispatch.moved import Addresses, follow_move
from server.embedded.children import ChildFailed, end, spawn
from server.embedded.folder import DataFolder, FolderRefused
from server.embedded.postgres import SUPERUSER, EmbeddedPostgres
from server.embedded.redis import EmbeddedRedis, find_binary
from server.migrate import LOGIN_ROLE, MigrationRefused, create_login_role, migrate
from server.settings import InvalidSettings, Settings, far_qstash_problems

DATABASE = "taskbeam"
ADDRESSES = "addresses.json"
READY_SECONDS_MAX = 60.0
NO_REDIS = "no Redis on this machine: changes travel by Postgres notices (install redis-server, or set REDIS_URL)"
STOP_SECONDS_MAX = 3.5
BACKOFF_SECONDS_MAX = 10.0
STEADY_SECONDS = 30.0
LOOK_SECONDS = 0.1
BACKLOG = 4096


class CannotStart(Exception):
    """Why `up` stops at once, in one line."""


class Stopped(KeyboardInterrupt):
    """A signal asked for the end. Of this kind, because an event loop passes no other on from its callbacks."""


def run_up(overrides: Mapping[str, str]) -> int:
    """Run until a signal comes; the exit code. `overrides` are settings given on the command line.

    Raises InvalidSettings.
    """
    env = {**os.environ, **overrides}
    settings = Settings.from_env(env)
    supervisor = Supervisor(settings, env)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _stop)
    try:
        supervisor.start()
        click.echo(supervisor.banner())
        sys.stdout.flush()
        while True:
            supervisor.watch()
    except Stopped:
        return 0
    except (CannotStart, ChildFailed, FolderRefused, MigrationRefused) as error:
        click.echo(f"taskbeam: {error}", err=True)
        return 1
    finally:
        # A second signal must not leave anything behind: it only has to wait a moment.
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)
        supervisor.stop()


def _stop(_: int, __: FrameType | None) -> NoReturn:
    raise Stopped


class Part:
    """One process of ours: how it is started, and how often it had to be."""

    def __init__(self, name: str, begin: Callable[[], "subprocess.Popen[bytes]"]) -> None:
        self.name = name
        self.begin = begin
        self.process = begin()
        self.began = time.monotonic()
        self.failures = 0
        self.again_at: float | None = None


class Supervisor:
    """Starts the parts in order, watches them, ends them in the reverse order."""

    def __init__(self, settings: Settings, env: Mapping[str, str]) -> None:
        self._settings = settings
        self._env = dict(env)
        self._folder = DataFolder(settings.data_dir)
        self._postgres: EmbeddedPostgres | None = None
        self._redis: EmbeddedRedis | None = None
        self._parts: list[Part] = []
        self._sockets: list[socket.socket] = []
        self.origin = ""

    def start(self) -> None:
        """Raises CannotStart, FolderRefused, ChildFailed or MigrationRefused."""
        settings = self._settings
        if problems := far_qstash_problems(settings):
            raise InvalidSettings(problems)
        self._folder.claim()
        web = self._listen(settings.host, settings.port)
        origin = f"http://{_shown_host(settings.host)}:{web.getsockname()[1]}"
        self._env.update(
            DATA_DIR=str(self._folder.path),
            PORT=str(web.getsockname()[1]),
            LOG_FORMAT=self._env.get("LOG_FORMAT") or ("console" if sys.stderr.isatty() else "json"),
        )
        if settings.database_url is None:
            self._postgres = EmbeddedPostgres(self._folder.path)
            self._postgres.start()
        if settings.redis_url is None and find_binary() is not None:
            self._redis = EmbeddedRedis(self._folder.path)
            self._redis.start()
            self._env["REDIS_URL"] = self._redis.url()
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
        self._add("web", web)
        self._await_web(web)
        self.origin = origin

    def _listen(self, host: str, port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host.strip("[]"), port))
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise CannotStart(
                f"port {port} on {host} cannot be used: {error.strerror}; choose another with --port"
            ) from None
        self._sockets.append(listener)
        return listener

    async def _prepare_database(self) -> None:
        try:
            if self._postgres is None:
                await migrate(self._settings.database_url or "")
            else:
                await self._create_database(self._postgres)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
            whose = "DATABASE_URL" if self._postgres is None else "the private Postgres"
            raise CannotStart(f"{whose}: {explain(error, self._settings.database_url or '')}") from error

    async def _create_database(self, postgres: EmbeddedPostgres) -> None:
        await postgres.ready()
        connection = await asyncpg.connect(postgres.url(SUPERUSER))
        try:
            if not await connection.fetchval("select exists (select from pg_database where datname = $1)", DATABASE):
                await connection.execute("create database taskbeam")
        finally:
            await connection.close()
        await migrate(postgres.url(DATABASE))
        connection = await asyncpg.connect(postgres.url(DATABASE))
        try:
            await create_login_role(connection)
        finally:
            await connection.close()
        self._env["DATABASE_URL"] = postgres.url(DATABASE, LOGIN_ROLE)

    async def _follow_move(self, here: Addresses) -> None:
        """What was accepted before a restart must reach us where we are now."""
        before = self._folder.recall(ADDRESSES)
        now = msgspec.to_builtins(here)
        if before == now:
            return
        if before:
            url = self._settings.database_url if self._postgres is None else self._postgres.url(DATABASE)
            connection = await asyncpg.connect(url)
            try:
                await follow_move(connection, msgspec.convert(before, Addresses), here)
            finally:
                await connection.close()
        self._folder.remember(ADDRESSES, now)

    def _add_dispatcher(self, origin: str) -> None:
        listener = self._listen("127.0.0.1", 0)
        self._env.update(
            self._folder.secrets(),
            QSTASH_URL=f"http://127.0.0.1:{listener.getsockname()[1]}",
            CALLBACK_URL=self._settings.callback_url or origin,
        )
        self._add("dispatcher", listener)

    def _add(self, name: str, listener: socket.socket) -> None:
        fd = listener.fileno()
        script = Path(sys.argv[0]).absolute()
        argv = [sys.executable, str(script), name, "--fd", str(fd)]
        self._parts.append(Part(name, lambda: spawn(argv, env=self._env, pass_fds=(fd,))))

    def _await_web(self, listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        deadline = time.monotonic() + READY_SECONDS_MAX
        while time.monotonic() < deadline:
            self._look()
            if any(part.failures for part in self._parts):
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
        return next(part.process.pid for part in self._parts if part.name == name)

    def banner(self) -> str:
        """What was started, where its data lies, and the address."""
        ours = [part.name for part in self._parts]
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
        """Wait a moment, then start again what has ended."""
        time.sleep(LOOK_SECONDS)
        self._look()

    def _look(self) -> None:
        for service in (self._postgres, self._redis):
            if service is not None and service.process is not None and service.process.poll() is not None:
                click.echo(f"taskbeam: {service.name} ended; starting it again", err=True)
                service.start()
                time.sleep(0.5)
        now = time.monotonic()
        for part in self._parts:
            if part.again_at is not None:
                if now >= part.again_at:
                    part.again_at = None
                    part.began = now
                    part.process = part.begin()
            elif part.process.poll() is not None:
                part.failures = 1 if now - part.began > STEADY_SECONDS else part.failures + 1
                pause = min(BACKOFF_SECONDS_MAX, 2.0 ** (part.failures - 1))
                part.again_at = now + pause
                click.echo(f"taskbeam: {part.name} ended ({_how(part.process)}); again in {pause:.0f} s", err=True)

    def stop(self) -> None:
        """End all, the database last. Idempotent."""
        for listener in self._sockets:
            listener.close()
        end([part.process for part in self._parts], signal.SIGTERM, STOP_SECONDS_MAX)
        self._parts.clear()
        if self._redis is not None:
            self._redis.stop()
        if self._postgres is not None:
            self._postgres.stop()


def _shown_host(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _how(process: "subprocess.Popen[bytes]") -> str:
    code = process.returncode
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
