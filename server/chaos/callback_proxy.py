"""Between a dispatcher and the web processes: passes requests on, and can be late, say them twice, cross or drop them.

It also spreads them over the web processes, as a load balancer would.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

from server.chaos.exchange import Message, ask, serve
from server.chaos.link import BACKLOG
from server.clients.origin import Address

Mode: TypeAlias = Literal["honest", "late", "twice", "crossed", "dropped"]
CALLBACK = "/api/generate/callback"
LATE_SECONDS = 1.0
CROSS_SECONDS_MAX = 1.0
ANSWER_SECONDS_MAX = 25.0
DROPPED_MAX = 8


class CallbackProxy:
    """`await start(webs)`; set `mode` with `turn()` at any time. Only callbacks are spoilt; `spoilt` counts them."""

    def __init__(self) -> None:
        self.mode: Mode = "honest"
        self.spoilt = 0
        self.address: Address = ("127.0.0.1", 0)
        self._next: Iterator[Address] = iter(())
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: asyncio.Future[None] | None = None
        self._honest = asyncio.Event()
        self._dropped = 0

    async def start(self, webs: Sequence[Address]) -> None:
        self._next = itertools.cycle(webs)
        self._server = await asyncio.start_server(self._serve, *self.address, backlog=BACKLOG)  # type: ignore[misc]
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = (host, port)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def turn(self, mode: Mode) -> None:
        """From now on; whoever still waits for an answer to a dropped callback is cut off when it is honest again."""
        self.mode = mode
        self._dropped = 0
        if mode == "honest":
            self._honest.set()
        else:
            self._honest.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  (a server runs this in one)
        self._tasks.add(task)
        try:
            await serve(self._pass, reader, writer)
        finally:
            self._tasks.discard(task)

    async def _pass(self, request: Message) -> bytes | None:
        if not request.target.startswith(CALLBACK) or self.mode == "honest":
            return await self._send(request)
        self.spoilt += 1
        match self.mode:
            case "late":
                await asyncio.sleep(LATE_SECONDS)
            case "twice":
                first = await self._send(request)
                return await self._send(request) or first
            case "crossed":
                await self._cross()
            case "dropped":
                return await self._drop(request)
        return await self._send(request)

    async def _cross(self) -> None:
        """Wait for another one and let it go first; who is waited for goes at once."""
        if self._waiting is not None and not self._waiting.done():
            waiting, self._waiting = self._waiting, None
            asyncio.get_running_loop().call_later(0.05, _release, waiting)
            return
        mine = self._waiting = asyncio.get_running_loop().create_future()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CROSS_SECONDS_MAX):
                await mine

    async def _drop(self, request: Message) -> bytes | None:
        """Every other one is heard and its answer lost, the others are not even heard. A few: each holds a sender."""
        self._dropped += 1
        if self._dropped > DROPPED_MAX:
            return await self._send(request)
        if self._dropped % 2:
            await self._send(request)
        await self._honest.wait()
        return None

    async def _send(self, request: Message) -> bytes | None:
        answer = await ask(next(self._next), request.raw, ANSWER_SECONDS_MAX)
        return None if answer is None else answer.raw


def _release(waiting: "asyncio.Future[None]") -> None:
    if not waiting.done():
        waiting.set_result(None)
