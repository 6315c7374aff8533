"""Brings each fault about, keeps it up for its time, and mends it. When `strike()` has returned, it is over."""

import asyncio
import contextlib
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from server.chaos.exchange import open_stream
from server.chaos.link import Link
from server.chaos.parts import LOOK_SECONDS, Parts, Process
from server.chaos.recovery import Heal
from server.chaos.schedule import Fault
from server.clients.crowd import Crowd
from server.db import DATABASE_ERRORS
from server.embedded.children import ChildFailed
from server.migrate import LOGIN_ROLE

Strike: TypeAlias = Callable[[Fault], Awaitable[None]]
SLOW_SECONDS = 0.15
DELAY_SECONDS = 0.3
BACK_SECONDS_MAX = 30.0
START_PAUSE_SECONDS = 0.1


class Faults:
    """`heals` tells what was over when; `reached` how often an armed failpoint was."""

    def __init__(self, parts: Parts, crowd: Crowd) -> None:
        self._parts = parts
        self._crowd = crowd
        self.heals: list[Heal] = []
        self.reached: dict[str, int] = {}

    async def strike(self, fault: Fault) -> None:
        """Raises ChildFailed when a part cannot be brought back."""
        part = fault.kind.partition(".")[0]
        strikes: dict[str, Strike] = {
            "redis": self._redis,
            "postgres": self._postgres,
            "web": self._process,
            "dispatcher": self._process,
            "link": self._link,
            "callback": self._callback,
            "clients": self._clients,
        }
        await strikes[part](fault)
        web = int(fault.target[-1]) if fault.target in ("web0", "web1") else None
        if part == "link" and fault.target.startswith(("web0-", "web1-", "clients-")):
            web = int(fault.target.removeprefix("clients-")[3])
        self.heals.append(Heal(fault.kind, time.time(), web))

    # Redis

    async def _redis(self, fault: Fault) -> None:
        how = fault.kind.partition(".")[2]
        redis, proxy = self._parts.redis, self._parts.redis_proxy
        match how:
            case "kill":
                _send(redis.process, signal.SIGKILL)
                await asyncio.sleep(fault.seconds)
                redis.stop()
                redis.start()
                await self._redis_back()
            case "stop":
                _send(redis.process, signal.SIGSTOP)
                try:
                    await asyncio.sleep(fault.seconds)
                finally:
                    _send(redis.process, signal.SIGCONT)
            case "flush":
                await self._flush()
            case "slow":
                await self._on_links("-redis", lambda link: link.turn("delayed", SLOW_SECONDS), fault.seconds)
            case "swallow" | "double" | "reorder":
                proxy.mode = how
                await asyncio.sleep(fault.seconds)
                proxy.mode = "honest"

    async def _flush(self) -> None:
        with contextlib.suppress(OSError, TimeoutError, EOFError):
            async with asyncio.timeout(1):
                reader, writer = await open_stream(self._parts.redis_socket)
                writer.write(b"FLUSHALL\r\n")
                await reader.readline()
                writer.close()

    async def _redis_back(self) -> None:
        deadline = time.monotonic() + BACK_SECONDS_MAX
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, TimeoutError):
                _, writer = await open_stream(self._parts.redis_socket)
                writer.close()
                return
            await asyncio.sleep(LOOK_SECONDS)
        raise ChildFailed("Redis did not come back")

    # Postgres

    async def _postgres(self, fault: Fault) -> None:
        postgres = self._parts.postgres
        match fault.kind.partition(".")[2]:
            case "restart":
                _send(postgres.process, signal.SIGINT)
                await self._postgres_back(fault.seconds)
            case "kill":
                _send(postgres.process, signal.SIGKILL)
                await self._postgres_back(fault.seconds)
            case "terminate":
                await self._as_admin(_TERMINATE)
            case "readonly":
                await self._as_admin("alter system set default_transaction_read_only = on", "select pg_reload_conf()")
                await asyncio.sleep(fault.seconds)
                await self._as_admin("alter system reset default_transaction_read_only", "select pg_reload_conf()")
            case "full":
                await self._as_admin(f"alter role {LOGIN_ROLE} connection limit 2", _TERMINATE)
                await asyncio.sleep(fault.seconds)
                await self._as_admin(f"alter role {LOGIN_ROLE} connection limit -1")
            case "stall":
                await self._on_links("-postgres", lambda link: link.turn("stalled"), fault.seconds)

    async def _postgres_back(self, seconds: float) -> None:
        """Start it again once it has ended; a server that was killed leaves others behind that must be gone first."""
        postgres = self._parts.postgres
        process = postgres.process
        while process is not None and process.poll() is None:  # noqa: ASYNC110  (the kernel tells nobody else)
            await asyncio.sleep(LOOK_SECONDS)
        await asyncio.sleep(seconds)
        deadline = time.monotonic() + BACK_SECONDS_MAX
        while True:
            postgres.start()
            try:
                return await postgres.ready()
            except ChildFailed:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(START_PAUSE_SECONDS)

    async def _as_admin(self, *statements: str) -> None:
        """What was begun must be mended: try until it is done."""
        deadline = time.monotonic() + BACK_SECONDS_MAX
        while True:
            try:
                connection = await self._parts.admin()
                try:
                    for statement in statements:
                        await connection.execute(statement)
                    return
                finally:
                    connection.terminate()
            except DATABASE_ERRORS as error:
                if time.monotonic() > deadline:
                    raise ChildFailed(f"Postgres is not what it should be: {error}") from error
                await asyncio.sleep(START_PAUSE_SECONDS)

    # Our processes

    async def _process(self, fault: Fault) -> None:
        process = self._parts.process(fault.target)
        match fault.kind.partition(".")[2]:
            case "kill":
                process.signal(signal.SIGKILL)
                await self._begin_again(process, fault.seconds)
            case "term":
                process.signal(signal.SIGTERM)
                await self._begin_again(process, fault.seconds)
            case "stop":
                process.signal(signal.SIGSTOP)
                try:
                    await asyncio.sleep(fault.seconds)
                finally:
                    process.signal(signal.SIGCONT)
            case "failpoint":
                process.signal(signal.SIGKILL)
                await process.ended(BACK_SECONDS_MAX)
                process.begin(fault.place)
                with contextlib.suppress(ChildFailed):  # it may be reached before all is ready
                    await process.ready()
                reached = await process.ended(fault.seconds)
                self.reached[fault.place] = self.reached.get(fault.place, 0) + reached
                process.signal(signal.SIGKILL)
                await self._begin_again(process, 0)

    async def _begin_again(self, process: Process, seconds: float) -> None:
        await process.ended(BACK_SECONDS_MAX)
        await asyncio.sleep(seconds)
        for _ in range(3):  # one that starts while Postgres is away may give up: a supervisor starts it again
            process.begin()
            with contextlib.suppress(ChildFailed):
                return await process.ready()
            process.signal(signal.SIGKILL)
            await process.ended(BACK_SECONDS_MAX)
        raise ChildFailed(f"{process.name} did not come back")

    # What lies between

    async def _link(self, fault: Fault) -> None:
        link = self._parts.links[fault.target]
        match fault.kind.partition(".")[2]:
            case "cut":
                link.turn("cut")
            case "delay":
                link.turn("delayed", DELAY_SECONDS)
            case _:
                link.turn("stalled")
        await asyncio.sleep(fault.seconds)
        link.turn("whole", forget=fault.kind == "link.forget")

    async def _on_links(self, ending: str, turn: Callable[[Link], None], seconds: float) -> None:
        links = [link for name, link in self._parts.links.items() if name.endswith(ending)]
        for link in links:
            turn(link)
        await asyncio.sleep(seconds)
        for link in links:
            link.turn("whole")

    async def _callback(self, fault: Fault) -> None:
        self._parts.callbacks.turn(fault.kind.partition(".")[2])  # type: ignore[arg-type]  # one of the modes
        await asyncio.sleep(fault.seconds)
        self._parts.callbacks.turn("honest")

    async def _clients(self, fault: Fault) -> None:
        self._crowd.cut(int(fault.target[-1]))


_TERMINATE = f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{LOGIN_ROLE}'"  # noqa: S608


def _send(process: "subprocess.Popen[bytes] | None", signum: int) -> None:
    if process is not None and process.poll() is None:
        process.send_signal(signum)
