"""Many tasks over one WebSocket: thin, like sse.py; what a client sees of a task is decided in follow.py.

One task of the event loop reads. Nothing the client sends ends the connection but what RFC 6455
says must: malformed JSON (1007), binary (1003), a message too long (1009, by the server).
"""

import asyncio
from typing import Annotated, TypeAlias

import msgspec
import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

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
from server.push.sender import ALL, Feed, Sender, Senders
from server.push.socket import Over, Socket
from server.push.turns import Turns
from server.tasks import snapshot
from server.tasks.tickets import Tickets

log = structlog.get_logger()

SUBSCRIPTIONS_MAX = 1_000
TASK_IDS_A_MESSAGE_MAX = 500

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


class _Typed(msgspec.Struct):
    type: str


# How a connection may come to its end.
_USUAL = (Over, WebSocketDisconnect, OSError, RuntimeError)


class Sockets:
    """WS /api/generate/ws"""

    def __init__(
        self,
        identify: Identify,
        verify: Verify,
        tickets: Tickets,
        following: Following,
        rights: Rights,
        turns: Turns,
        metrics: Metrics,
    ) -> None:
        self._identify = identify
        self._verify = verify
        self._tickets = tickets
        self._following = following
        self._shared = Senders(following.hub, rights, turns, metrics)

    async def serve(self, websocket: WebSocket) -> None:
        ticket = websocket.query_params.get("ticket")
        caller = await (self._identify(websocket) if ticket is None else self._tickets.spend(ticket, []))
        await self._shared.rights.require(caller)
        await websocket.accept()
        websocket.headers.raw.clear()  # not asked for again, and kept for as long as the connection
        self._shared.metrics.websocket.open.inc()
        connection = _Connection(self._verify, self._following, self._shared, Socket(websocket), caller)
        try:
            await connection.run(websocket)
        finally:
            self._shared.metrics.websocket.open.dec()
            connection.release()


class _Connection:
    """Reads, in the task of the ASGI application; a Sender writes."""

    def __init__(self, verify: Verify, following: Following, shared: Senders, socket: Socket, caller: Caller) -> None:
        self._verify = verify
        self._following = following
        self._shared = shared
        self._socket = socket
        self._caller = caller
        self._sender = Sender(shared, socket, caller, self._stop)
        self._task: asyncio.Task[None] | None = None
        self._stopped: BaseException | None = None

    async def run(self, websocket: WebSocket) -> None:
        """Until the client goes, or is sent away."""
        self._task = asyncio.current_task()
        try:
            await self._read(websocket)
        except _USUAL:
            pass
        except asyncio.CancelledError:
            if self._stopped is None or self._task is None:
                raise
            self._task.uncancel()
            if not isinstance(self._stopped, _USUAL):
                raise self._stopped from None
        self._task = None
        if self._sender.last_word is not None:
            await asyncio.wait((self._sender.last_word,))

    def _stop(self, why: BaseException) -> None:
        if self._task is not None and self._stopped is None:
            self._stopped = why
            self._task.cancel()

    def release(self) -> None:
        self._task = None
        self._sender.close()

    async def _read(self, websocket: WebSocket) -> None:
        while True:
            event = await websocket.receive()
            if event["type"] == "websocket.disconnect":
                break
            text = event.get("text")
            if text is None:
                await self._socket.close(1003, "text messages only")
                break
            try:
                message = _decode(text)
            except msgspec.ValidationError as error:
                await self._refuse([], _unknown(text) or BadRequest(str(error)))
            except (msgspec.DecodeError, RecursionError):
                await self._socket.close(1007, "not JSON")
                break
            else:
                await self._obey(message)

    async def _refuse(self, task_ids: list[str], problem: Problem) -> None:
        await self._socket.send(wire.ws_message(wire.Refused(task_ids, problem_body(problem))))

    async def _obey(self, message: Message) -> None:
        if self._socket.over:
            raise Over
        match message:
            case Ping():
                await self._socket.send(wire.ws_message(wire.Pong()))
            case Auth(token=token):
                await self._renew(token)
            case Unsubscribe(task_ids=task_ids, all=everything):
                for key in [ALL] if everything else task_ids:
                    self._sender.drop(key)
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
            await self._shared.rights.require(caller)
        except (Unauthorized, Unavailable) as problem:
            return await self._refuse([], problem)
        self._caller = caller
        for feed in self._sender.feeds.values():
            if feed.follower is not None:
                feed.follower.caller = caller
        if self._sender.right is not None:
            self._shared.rights.renew(self._sender.right, caller)
        expires_at = wire.instant(caller.expires_at) if caller.expires_at is not None else None
        await self._socket.send(wire.ws_message(wire.Authenticated(expires_at)))
        return None

    async def _subscribe_all(self, message: Subscribe) -> None:
        try:
            after = wire.parse_owner_cursor(message.after) if isinstance(message.after, str) else 0
        except wire.BadCursor as error:
            return await self._refuse([], InvalidCursor(str(error)))
        self._sender.drop(ALL)
        try:
            feed = Feed(self._sender, ALL)
            follower = await self._following.all(self._caller, after or None, feed.wake)
        except UNAVAILABLE:
            return await self._refuse([], Unavailable())
        if follower is None:  # a ticket for named tasks
            return await self._refuse([], TaskNotFound())
        return await self._started(feed, [], follower)

    async def _subscribe_tasks(self, message: Subscribe) -> None:
        after = message.after if isinstance(message.after, dict) else {}
        for task_id in dict.fromkeys(message.task_ids):
            if task_id not in self._sender.feeds and len(self._sender.feeds) >= SUBSCRIPTIONS_MAX:
                await self._refuse([task_id], InvalidParameter(f"{SUBSCRIPTIONS_MAX} subscriptions at most"))
                continue
            version = after.get(task_id, 0)
            if not 0 <= version <= wire.VERSION_MAX:
                await self._refuse([task_id], InvalidCursor("a version is a whole number"))
                continue
            self._sender.drop(task_id)
            try:
                feed = Feed(self._sender, task_id)
                valid = snapshot.TASK_ID.fullmatch(task_id)
                follower = await self._following.task(self._caller, task_id, version, feed.wake) if valid else None
            except UNAVAILABLE:
                await self._refuse([task_id], Unavailable())
                continue
            if follower is None:
                await self._refuse([task_id], TaskNotFound())
            else:
                await self._started(feed, [task_id], follower)

    async def _started(self, feed: Feed, task_ids: list[str], follower: Follower) -> None:
        """Say how it joined and what is so; only then may the writer take over."""
        self._shared.metrics.websocket.joined[follower.sync.mode].inc()
        try:
            await self._socket.send(wire.ws_message(wire.Subscribed(task_ids, follower.sync)))
            sync, first = follower.sync, follower.begun()
            for number, change in enumerate(first, 1):
                # A cursor must not pass what was not delivered: of a snapshot of many only the last one bears it.
                reached = sync.to if number == len(first) else sync.from_
                await self._sender.tell_change(change, str(reached if feed.key == ALL else change.version))
        except BaseException:
            follower.close()
            raise
        if feed.key != ALL and (follower.over or (first and first[-1].is_terminal)):
            follower.close()
            return
        self._sender.begin(feed, follower)


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
