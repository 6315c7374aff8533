"""What is so once a task has ended: every way to ask for it says the same, and a cursor at its end is told nothing."""

import asyncio
import contextlib
from collections import Counter
from typing import Any, TypeAlias

import msgspec

from server.clients.followers import EVENTS, SOCKET, STATUS
from server.clients.judge import Defect, Kind
from server.clients.origin import Origin
from server.clients.socket import Socket
from server.clients.streaming import Answer, BrokenAnswer, Event, connect, fetch, parse_event
from server.clients.views import Transport
from server.tasks.state import TERMINAL

ASK_SECONDS_MAX = 10.0
MESSAGES_MAX = 50
# Not versioned, so they may differ from one answer to the next.
ADVISORY = ("queuePosition", "etaMs", "pollAfterMs")

Task: TypeAlias = dict[str, Any]


class Final:
    """`await examine()`: then `defects`, how often was looked (`checks`), and `task`, where it could be had."""

    def __init__(self, origin: Origin, task_id: str) -> None:
        self._origin = origin
        self._task_id = task_id
        self.task: Task | None = None
        self.defects: list[Defect] = []
        self.checks: Counter[str] = Counter()

    async def examine(self) -> None:
        """An open task is only looked up: that it is open says the log."""
        answer = await self._get("poll", f"{STATUS}?taskId={self._task_id}")
        self.task = self._task_of("poll", answer)
        if self.task is None or answer is None or self.task.get("status") not in TERMINAL:
            return
        try:
            await self._ask(self.task, answer.headers.get("etag", ""))
            await self._stream(self.task, self.task["version"])
            await self._socket(self.task, self.task["version"])
        except (LookupError, TypeError, ValueError, msgspec.MsgspecError) as error:
            self._wrong("untrue", "poll", "what the protocol has", f"{type(error).__name__}: {error}"[:200])

    async def _ask(self, task: Task, etag: str) -> None:
        version = task["version"]
        if etag != f'W/"{version}"':
            self._wrong("untrue", "poll", f'ETag W/"{version}"', etag or "none")
        again = await self._get("poll", f"{STATUS}?taskId={self._task_id}", {"If-None-Match": etag})
        self._expect_status("poll", again, 304, "to a request with the ETag it gave", version)
        for after in (0, version):
            answer = await self._get("longpoll", f"{STATUS}?taskId={self._task_id}&wait=5&after={after}")
            self._agree("longpoll", self._task_of("longpoll", answer), task)
        page = await self._get("poll", "/api/generate?limit=100")
        listed = msgspec.json.decode(page.body)["tasks"] if page and page.status == 200 else []
        for found in (found for found in listed if found["taskId"] == self._task_id):
            self._agree("poll", found, task)

    async def _stream(self, task: Task, version: int) -> None:
        where = f"{EVENTS}?taskId={self._task_id}"
        at_end = await self._get("sse", where, {"Last-Event-ID": str(version)})
        self._expect_status("sse", at_end, 204, "to a cursor at the end", version)
        at_end = await self._get("sse_after", f"{where}&after={version}")
        self._expect_status("sse_after", at_end, 204, "to a cursor at the end", version)
        for after in (0, 1):
            transport: Transport = "sse_after" if after else "sse"
            answer = await self._get(transport, f"{where}&after={after}" if after else where)
            if answer is None or answer.status != 200:
                self._wrong("refused", transport, "a stream", f"HTTP {answer.status if answer else 0}", after)
                continue
            self._read_stream(transport, [parse_event(lines) for lines in answer.body.split(b"\n\n")], task, after)

    def _read_stream(self, transport: Transport, events: list[Event], task: Task, after: int) -> None:
        named = [event for event in events if event.name]
        changes = [event for event in named if event.name in ("status", "progress")]
        if not named or named[0].name != "sync" or not changes:
            told = ", ".join(event.name for event in named[:10]) or "nothing"
            self._wrong("untrue", transport, "sync first, then the end", told, after)
            return
        sync = msgspec.json.decode(named[0].data)
        mode = "replay" if after else "snapshot"
        self.checks["joins"] += 1
        if (sync["mode"], sync["recovered"]) != (mode, bool(after)):
            self._wrong("untrue", transport, f"sync to say {mode}", named[0].data.decode()[:200], after)
        ids = [int(event.id) for event in changes]
        if ids != sorted(set(ids)) or ids[0] <= after or (not after and len(ids) > 1):
            self._wrong("repeated", transport, f"rising versions above {after}", ", ".join(map(str, ids[:20])), after)
        self._agree(transport, msgspec.json.decode(changes[-1].data), task, after)

    async def _socket(self, task: Task, version: int) -> None:
        told: list[Task] = []

        def opened() -> None:
            for after in ({}, {self._task_id: version}):
                asked = {"type": "subscribe", "taskIds": [self._task_id], "after": after}
                client.send(msgspec.json.encode(asked))
            client.send(b'{"type":"ping"}')

        def text(message: bytes) -> None:
            try:
                told.append(msgspec.json.decode(message, type=dict[str, Any]))
            except msgspec.MsgspecError:
                told.append({"type": "what is no message"})
            if told[-1].get("type") == "pong" or len(told) >= MESSAGES_MAX:
                client.abort()

        client = Socket(self._origin, SOCKET, opened, text)
        try:
            await connect(client, self._origin)
            async with asyncio.timeout(ASK_SECONDS_MAX):
                await asyncio.shield(client.done)
        except (OSError, TimeoutError):
            pass
        finally:
            client.abort()
        types = [message.get("type") for message in told]
        expected = ["subscribed", "status", "subscribed", "pong"]
        if types != expected:
            saw = f"{', '.join(map(str, types)) or 'nothing'} (HTTP {client.status})"
            self._wrong("untrue", "websocket", ", ".join(expected), saw)
            return
        self.checks["joins"] += 2
        for message, join in ((told[0], ("snapshot", False)), (told[2], ("live", True))):
            sync = message["sync"]
            if (sync["mode"], sync["recovered"]) != join:
                self._wrong("untrue", "websocket", f"sync to say {join[0]}", str(sync)[:200])
        self._agree("websocket", told[1]["task"], task)

    async def _get(self, transport: Transport, target: str, headers: dict[str, str] | None = None) -> Answer | None:
        with contextlib.suppress(OSError, TimeoutError, BrokenAnswer):
            return await fetch(self._origin, "GET", target, headers=headers, seconds=ASK_SECONDS_MAX)
        self._wrong("refused", transport, "an answer", f"none to {target.partition('?')[0]}")
        return None

    def _expect_status(self, transport: Transport, answer: Answer | None, status: int, why: str, cursor: int) -> None:
        if answer is not None:
            self.checks[str(status)] += 1
            if answer.status != status:
                self._wrong("untrue", transport, f"{status} {why}", f"HTTP {answer.status}", cursor)

    def _task_of(self, transport: Transport, answer: Answer | None) -> Task | None:
        with contextlib.suppress(msgspec.MsgspecError):
            if answer is not None and answer.status == 200:
                return msgspec.json.decode(answer.body, type=dict[str, Any])
        if answer is not None:
            self._wrong("refused", transport, "the task", f"HTTP {answer.status}")
        return None

    def _agree(self, transport: Transport, told: Task | None, task: Task, cursor: int = 0) -> None:
        if told is None:
            return
        self.checks["agreed"] += 1
        names = {*told, *task}.difference(ADVISORY)
        differing = sorted(name for name in names if told.get(name) != task.get(name))
        if differing:
            shown = "; ".join(f"{name} {told.get(name)!r}"[:80] for name in differing[:3])
            other = "; ".join(f"{name} {task.get(name)!r}"[:80] for name in differing[:3])
            self._wrong("untrue", transport, f"the final snapshot of the poll ({other})", shown, cursor)

    def _wrong(self, kind: Kind, transport: Transport, expected: str, saw: str, cursor: int = 0) -> None:
        self.defects.append(Defect(kind, self._task_id, expected, saw, 0, transport, cursor))
