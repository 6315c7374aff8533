"""Many tasks over one WebSocket: thin, like sse.py; what a client sees of a task is decided in follow.py.

One task of the event loop reads, one writes. Nothing the client sends ends the connection but what RFC 6455
says must: malformed JSON (1007), binary (1003), a message too long (1009, by the server).
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from typing import Annotated, TypeAlias

import msgspec
import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from server.auth import Caller, Identify, Verify
from server.db import UNAVAILABLE
from server.errors import (
    BadRequest,
    InvalidAccessToken,
    InvalidCursor,
    InvalidParameter,
    Problem,
    TaskNotFound,
    Unauthorized,
    Unavailable,
    problem_body,
)
from server.metrics import Metrics
from server.push import wire
from server.push.follow import Follower, Following
from server.push.rights import Rights
from server.tasks import snapshot
from server.tasks.tickets import Tickets

log = structlog.get_logger()

SUBSCRIPTIONS_MAX = 1_000
TASK_IDS_A_MESSAGE_MAX = 500
SEND_SECONDS_MAX = 30.0
END_SECONDS_MAX = 2.0
ALL = "*"

TaskIds: TypeAlias = Annotated[list[str], msgspec.Meta(max_length=TASK_IDS_A_MESSAGE_MAX)]


class Subscribe(msgspec.Struct, tag="subscribe", rename="camel"):
    """Follow named tasks, each from its version, or all from an opaque cursor."""

    task_ids: TaskIds = []
    all: bool = False
    after: dict[str, int] | str | None = None


class Unsubscribe(msgspec.Struct, tag="unsubscribe", rename="camel"):
    """Follow these no longer, or (`all`) no longer all; nothing is answered."""

    task_ids: TaskIds = []
    all: bool = False


class Ping(msgspec.Struct, tag="ping"):
    """Is answered with a pong."""


class Auth(msgspec.Struct, tag="auth"):
    """Go on with this newer access token of the same user; what is followed is not interrupted."""

    token: str


Message: TypeAlias = Subscribe | Unsubscribe | Ping | Auth
_decode = msgspec.json.Decoder(Message).decode


class _Over(Exception):
    """The right of this connection has ended: nothing is sent any more but that."""


class _Typed(msgspec.Struct):
    type: str


# How a connection may come to its end.
_USUAL = (_Over, WebSocketDisconnect, OSError, RuntimeError)


class Sockets:
    """WS /api/generate/ws"""

    def __init__(
        self,
        identify: Identify,
        verify: Verify,
        tickets: Tickets,
        following: Following,
        rights: Rights,
        metrics: Metrics,
    ) -> None:
        self._identify = identify
        self._verify = verify
        self._tickets = tickets
        self._following = following
        self._rights = rights
        self._metrics = metrics

    async def serve(self, websocket: WebSocket) -> None:
        ticket = websocket.query_params.get("ticket")
        caller = await (self._identify(websocket) if ticket is None else self._tickets.spend(ticket, []))
        await self._rights.require(caller)
        await websocket.accept()
        self._metrics.websocket.open.inc()
        connection = _Connection(websocket, caller, self._verify, self._following, self._rights, self._metrics)
        try:
            await connection.run()
        finally:
            self._metrics.websocket.open.dec()
            connection.release()


class _Connection:
    def __init__(
        self,
        websocket: WebSocket,
        caller: Caller,
        verify: Verify,
        following: Following,
        rights: Rights,
        metrics: Metrics,
    ) -> None:
        self._websocket = websocket
        self._caller = caller
        self._verify = verify
        self._following = following
        self._rights = rights
        self._metrics = metrics
        self._followers: dict[str, Follower] = {}
        self._dirty: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._sending = asyncio.Lock()
        self._ended = asyncio.Event()
        self._right = rights.enter(caller, self._followers.values(), self._news_of_right)

    async def run(self) -> None:
        # The hub wakes followers when the process goes; a connection that follows nothing needs one as well.
        presence = self._following.hub.subscribe("presence", 0, self._wake.set)
        writer = asyncio.create_task(self._write())
        reader = asyncio.create_task(self._read())
        ender = asyncio.create_task(self._end())
        try:
            await asyncio.wait((writer, reader, ender), return_when=asyncio.FIRST_COMPLETED)
            if self._ended.is_set():
                await asyncio.wait((ender,))
        finally:
            self._following.hub.unsubscribe(presence)
            for task in (writer, reader, ender):
                task.cancel()
            results = await asyncio.gather(writer, reader, ender, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, _USUAL):
                raise result

    def release(self) -> None:
        if self._right is not None:
            self._right.leave()
        for follower in self._followers.values():
            follower.close()
        self._followers.clear()

    def _news_of_right(self) -> None:
        self._wake.set()
        if self._right is not None and self._right.problem is not None:
            self._ended.set()

    async def _end(self) -> None:
        """Say that the right has ended, to a client that reads; one that does not is not waited for."""
        await self._ended.wait()
        problem = self._right.problem if self._right is not None else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS_MAX), self._sending:
                if problem is not None:
                    await self._websocket.send_text(wire.ws_message(wire.Refused([], problem_body(problem))).decode())
                    await self._close(1008, problem.code)

    async def _send(self, data: bytes) -> None:
        """Raises _Over, also where the right ended while it waited for others to be sent."""
        async with self._sending, asyncio.timeout(SEND_SECONDS_MAX):
            if self._ended.is_set():
                raise _Over
            await self._websocket.send_text(data.decode())

    async def _close(self, code: int, reason: str) -> None:
        if self._websocket.application_state is not WebSocketState.DISCONNECTED:
            await self._websocket.close(code, reason)

    async def _read(self) -> None:
        while True:
            event = await self._websocket.receive()
            if event["type"] == "websocket.disconnect":
                break
            text = event.get("text")
            if text is None:
                await self._close(1003, "text messages only")
                break
            try:
                message = _decode(text)
            except msgspec.ValidationError as error:
                await self._refuse([], _unknown(text) or BadRequest(str(error)))
            except (msgspec.DecodeError, RecursionError):
                await self._close(1007, "not JSON")
                break
            else:
                await self._obey(message)

    async def _refuse(self, task_ids: list[str], problem: Problem) -> None:
        await self._send(wire.ws_message(wire.Refused(task_ids, problem_body(problem))))

    async def _obey(self, message: Message) -> None:
        if self._ended.is_set():
            raise _Over
        match message:
            case Ping():
                await self._send(wire.ws_message(wire.Pong()))
            case Auth(token=token):
                await self._renew(token)
            case Unsubscribe(task_ids=task_ids, all=everything):
                for key in [ALL] if everything else task_ids:
                    self._drop(key)
            case Subscribe(all=True):
                await self._subscribe_all(message)
            case Subscribe(task_ids=[]):
                await self._refuse([], InvalidParameter("name taskIds, or all"))
            case Subscribe():
                await self._subscribe_tasks(message)

    async def _renew(self, token: str) -> None:
        """Whatever is wrong with the token, the connection stays as it was."""
        try:
            caller = await self._verify(token)
            if caller.user_id != self._caller.user_id:
                raise InvalidAccessToken("The token is of another user")
            await self._rights.require(caller)
        except (Unauthorized, Unavailable) as problem:
            return await self._refuse([], problem)
        self._caller = caller
        for follower in self._followers.values():
            follower.caller = caller
        if self._right is not None:
            self._rights.renew(self._right, caller)
        expires_at = wire.instant(caller.expires_at) if caller.expires_at is not None else None
        await self._send(wire.ws_message(wire.Authenticated(expires_at)))
        return None

    def _drop(self, key: str) -> None:
        follower = self._followers.pop(key, None)
        self._dirty.pop(key, None)
        if follower is not None:
            follower.close()

    def _waker(self, key: str) -> Callable[[], None]:
        def wake() -> None:
            self._dirty[key] = None
            self._wake.set()

        return wake

    async def _subscribe_all(self, message: Subscribe) -> None:
        try:
            after = wire.parse_owner_cursor(message.after) if isinstance(message.after, str) else 0
        except wire.BadCursor as error:
            return await self._refuse([], InvalidCursor(str(error)))
        self._drop(ALL)
        try:
            follower = await self._following.all(self._caller, after or None, self._waker(ALL))
        except UNAVAILABLE:
            return await self._refuse([], Unavailable())
        if follower is None:  # a ticket for named tasks
            return await self._refuse([], TaskNotFound())
        return await self._started(ALL, [], follower)

    async def _subscribe_tasks(self, message: Subscribe) -> None:
        after = message.after if isinstance(message.after, dict) else {}
        for task_id in dict.fromkeys(message.task_ids):
            if task_id not in self._followers and len(self._followers) >= SUBSCRIPTIONS_MAX:
                await self._refuse([task_id], InvalidParameter(f"{SUBSCRIPTIONS_MAX} subscriptions at most"))
                continue
            version = after.get(task_id, 0)
            if not 0 <= version <= wire.VERSION_MAX:
                await self._refuse([task_id], InvalidCursor("a version is a whole number"))
                continue
            self._drop(task_id)
            try:
                valid = snapshot.TASK_ID.fullmatch(task_id)
                follower = (
                    await self._following.task(self._caller, task_id, version, self._waker(task_id)) if valid else None
                )
            except UNAVAILABLE:
                await self._refuse([task_id], Unavailable())
                continue
            if follower is None:
                await self._refuse([task_id], TaskNotFound())
            else:
                await self._started(task_id, [task_id], follower)

    async def _started(self, key: str, task_ids: list[str], follower: Follower) -> None:
        """Say how it joined and what is so; only then may the writer take over."""
        self._metrics.websocket.joined[follower.sync.mode].inc()
        try:
            await self._send(wire.ws_message(wire.Subscribed(task_ids, follower.sync)))
            sync, first = follower.sync, follower.begun()
            for number, change in enumerate(first, 1):
                # A cursor must not pass what was not delivered: of a snapshot of many only the last one bears it.
                reached = sync.to if number == len(first) else sync.from_
                await self._send_change(change, str(reached if key == ALL else change.version))
        except BaseException:
            follower.close()
            raise
        if key != ALL and (follower.over or (first and first[-1].is_terminal)):
            follower.close()
            return
        self._followers[key] = follower
        self._waker(key)()

    async def _write(self) -> None:
        while not self._following.hub.closing:
            self._wake.clear()
            ends_at = self._right.take_warning() if self._right is not None else None
            if ends_at is not None:
                await self._send(wire.ws_message(wire.Expiring(wire.instant(ends_at))))
            while self._dirty:
                key = next(iter(self._dirty))
                del self._dirty[key]
                follower = self._followers.get(key)
                if follower is not None:
                    await self._forward(key, follower)
            await self._wake.wait()
        spread_ms = max(1_000, len(self._following.hub))
        again_ms = 500 + random.randint(0, spread_ms)  # noqa: S311  (spreads reconnects)
        await self._send(wire.ws_message(wire.Bye("restarting", again_ms)))
        await self._close(1012, "restarting")

    async def _forward(self, key: str, follower: Follower) -> None:
        for item in await follower.ready():
            position, change = item.position, item.change
            if position > follower.joined_at:
                self._metrics.send_seconds.observe(max(0.0, time.time() - change.at))
            await self._send_change(change, wire.owner_cursor(position) if key == ALL else str(change.version))
            if key != ALL and change.is_terminal:
                self._drop(key)
                return
        deleted = follower.deleted()
        if deleted and key == ALL:
            await self._send(wire.ws_message(wire.Gone(deleted)))
        elif deleted:
            self._drop(key)
            await self._refuse(deleted, TaskNotFound())

    async def _send_change(self, change: snapshot.TaskChange, cursor: str) -> None:
        self._metrics.websocket.sent.inc()
        await self._send(wire.ws_change(change, cursor))


def _unknown(text: str) -> Problem | None:
    """A message of a type that there is not, as opposed to one of ours that is wrong."""
    try:
        kind = msgspec.json.decode(text, type=_Typed).type
    except msgspec.MsgspecError:
        return None
    known = ("subscribe", "unsubscribe", "auth", "ping")
    return (
        None
        if kind in known
        else BadRequest(f"there is no message of type {kind[:40]!r}; there are {', '.join(known)}")
    )
