"""Asks the other processes behind the port for their figures, and answers when they ask.

A question is one end of a new pair of sockets, sent to the inbox of the sibling, which writes its figures to it and
closes it. Only the supervisor's processes have the other end of an inbox.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from server.fleet.board import Place, Sibling
from server.fleet.exposition import HELP, put_together

# A process takes half a second for what Postgres knows, when Postgres does not answer.
ANSWER_SECONDS_MAX = 2.0
ANSWER_BYTES_MAX = 8_000_000
ANSWERS_AT_ONCE_MAX = 4
QUESTION = b"figures"
# An answer without it was cut off; one without a first HELP is of something else.
END = b"# EOF\n"

Figures: TypeAlias = Callable[[], Awaitable[bytes]]


class Siblings:
    """`run()` until cancelled; `figures()` are those of all the processes. `own` gives this one's."""

    def __init__(self, place: Place, own: Figures) -> None:
        self._place = place
        self._own = own
        self._answering: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._place.inbox, self._asked)
        try:
            await loop.create_future()
        finally:
            loop.remove_reader(self._place.inbox)

    async def figures(self) -> bytes:
        """In the Prometheus text format. Who does not answer in time is left out, and counted."""
        siblings = self._place.siblings()
        own, answers = await asyncio.gather(self._own(), asyncio.gather(*map(self._ask, siblings)))
        texts = {s.slot: text for s, text in zip(siblings, answers, strict=True) if text is not None}
        return put_together({self._place.slot: own, **texts}, len(siblings) - len(texts))

    async def _ask(self, sibling: Sibling) -> bytes | None:
        if sibling.outbox is None:
            return None
        mine, theirs = socket.socketpair()
        with mine:
            mine.setblocking(False)
            with theirs:
                try:
                    socket.send_fds(sibling.outbox, [QUESTION], [theirs.fileno()])
                except OSError:  # its inbox is full: it has not looked for a while
                    return None
            try:
                async with asyncio.timeout(ANSWER_SECONDS_MAX):
                    return await self._read(mine)
            except (TimeoutError, OSError):
                return None

    async def _read(self, mine: socket.socket) -> bytes | None:
        loop = asyncio.get_running_loop()
        text = bytearray()
        while part := await loop.sock_recv(mine, 65_536):
            text += part
            if len(text) > ANSWER_BYTES_MAX:
                return None
        whole = text.startswith(HELP) and text.endswith(END)
        return bytes(text.removesuffix(END)) if whole else None

    def _asked(self) -> None:
        try:
            _, fds, _, _ = socket.recv_fds(self._place.inbox, len(QUESTION), 1)
        except BlockingIOError:
            return
        for fd in fds:
            asker = socket.socket(fileno=fd)
            if len(self._answering) >= ANSWERS_AT_ONCE_MAX:
                asker.close()
                continue
            task = asyncio.create_task(self._answer(asker))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    async def _answer(self, asker: socket.socket) -> None:
        with asker:
            asker.setblocking(False)
            with contextlib.suppress(TimeoutError, OSError):  # nobody waits for it any more
                async with asyncio.timeout(ANSWER_SECONDS_MAX):
                    await asyncio.get_running_loop().sock_sendall(asker, await self._own() + END)
