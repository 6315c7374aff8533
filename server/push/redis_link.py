"""A connection to Redis at the speed of hiredis: redis-py opens it, and then the transport is ours.

How to get there (TLS, passwords, RESP 2 or 3, sockets, every option of a URL) is redis-py's, so any URL that it takes
will do. What comes after the handshake is read by hiredis, at a microsecond a message. This file alone knows what
redis-py is like inside; tests/push/test_redis_link.py fails when that changes.
"""

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import hiredis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LinkError
from redis.exceptions import InvalidResponse, RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from server.redis_url import Sentinels, sentinels

CONNECT_SECONDS_MAX = 2.0
SENTINEL_SECONDS_MAX = 0.5
REPLY_BYTES_MAX = 1 << 20  # a snapshot is far below: its parts are bounded where they come in
PORT_DIGITS_MAX = 5
UNSENT_BYTES_MAX = 64 << 20  # Redis takes nothing any more, and its pongs are not yet missed
UNAVAILABLE: tuple[type[BaseException], ...] = (RedisError, OSError, TimeoutError)

# Bytes, int, None, a list of such; an exception where Redis answers with an error.
Reply: TypeAlias = Any
Receive: TypeAlias = Callable[[list[Reply]], None]
_NO_MORE = object()


def pack(commands: Iterable[tuple[str | bytes, ...]]) -> bytes:
    """The commands as they are sent, in one piece."""
    return b"".join([hiredis.pack_command(command) for command in commands])  # type: ignore[arg-type]  # meant: any length


async def open_link(url: str, receive: Receive) -> "Link":
    """A link to the Redis at the URL, or to the master that its Sentinels know.

    `receive(replies)` is called with what each read brings; what it raises ends the link. Raises UNAVAILABLE, within
    CONNECT_SECONDS_MAX.
    """
    async with asyncio.timeout(CONNECT_SECONDS_MAX):
        asked = sentinels(url)
        connection = await (_open(url) if asked is None else _open_master(asked))
        if await connection.can_read():
            await connection.disconnect(nowait=True)
            raise LinkError("closed at once, or speaks unasked")
        return _take_over(connection, receive)


def refusal(url: str) -> str | None:
    """Why redis-py takes no such URL, None where it does. Names no option: it may be a piece of a password."""
    asked = sentinels(url)
    for each in (url,) if asked is None else (*asked.urls, asked.master("localhost", 1)):
        try:
            _unopened(each)
        except (ValueError, RedisError) as error:
            return f"cannot be used: {error}"
        except Exception:  # whatever it does with what it did not foresee
            return "has an option that redis-py does not know, or cannot take as it is"
    return None


def _unopened(url: str) -> Any:
    """A connection of redis-py's."""
    pool: Any = redis.asyncio.ConnectionPool.from_url(
        url,
        socket_connect_timeout=CONNECT_SECONDS_MAX,
        socket_timeout=CONNECT_SECONDS_MAX,
        retry=Retry(NoBackoff(), 0),
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )
    return pool.make_connection()


async def _open(url: str) -> Any:
    """One after its handshake."""
    connection = None
    try:
        connection = _unopened(url)
        await connection.connect()
    except BaseException as error:
        if connection is not None:
            await connection.disconnect(nowait=True)
        if isinstance(error, UNAVAILABLE) or not isinstance(error, Exception):
            raise
        raise LinkError("not as redis-py foresees") from error
    return connection


async def _ask(connection: Any, *command: str) -> Reply:
    await connection.send_command(*command)
    return await connection.read_response(disable_decoding=True)


async def _open_master(asked: Sentinels) -> Any:
    """As the protocol of Sentinel's clients has it: ask one after the other, and see that it is the master indeed."""
    connection = await _open(asked.master(*await _master_of(asked)))
    try:
        role = await _ask(connection, "ROLE")
        if not isinstance(role, list) or role[:1] != [b"master"]:
            raise LinkError("not the master any more, or not yet")
    except ResponseError:
        pass  # this user may not ask that
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return connection


async def _master_of(asked: Sentinels) -> tuple[str, int]:
    for url in random.sample(asked.urls, len(asked.urls)):
        try:
            async with asyncio.timeout(SENTINEL_SECONDS_MAX):
                sentinel = await _open(url)
                try:
                    found = await _ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", asked.service)
                finally:
                    await sentinel.disconnect(nowait=True)
        except UNAVAILABLE:
            continue
        match found:
            case [bytes(host), bytes(port)] if port.isdigit() and len(port) <= PORT_DIGITS_MAX:
                return host.decode(errors="replace"), int(port)
    raise LinkError("no Sentinel knows a master")


def _take_over(connection: Any, receive: Receive) -> "Link":
    """Let redis-py forget a connection on which nothing is under way."""
    writer: asyncio.StreamWriter = connection._writer
    link = Link(receive, connection._parser.parse_error, writer)
    link.connection_made(writer.transport)
    writer.transport.set_protocol(link)
    connection._reader = connection._writer = None  # or it would close the transport with itself
    return link


class Link(asyncio.Protocol):
    """Use write(); `lost` is done when the link is, with the reason. `heard` is set by every read."""

    def __init__(
        self,
        receive: Receive,
        reply_error: Callable[[str], Exception] = ResponseError,
        keep: asyncio.StreamWriter | None = None,
    ) -> None:
        self._receive = receive
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=reply_error, notEnoughData=_NO_MORE)
        self._keep = keep  # a StreamWriter closes its transport when nobody holds it any more
        self._transport: Any = None
        self._unread = 0  # bytes of a reply that has not yet come to its end
        self.heard = False
        self.lost: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        """Send it soon. On a link that is lost it goes nowhere."""
        if self._transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            self.lose(LinkError("Redis does not read"))
        if not self.lost.done():
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self.lost.done():
            return
        self.heard = True
        replies: list[Reply] = []
        error = self._parse(data, replies)
        self._unread = 0 if replies else self._unread + len(data)
        if self._unread > REPLY_BYTES_MAX:
            error = InvalidResponse("a reply beyond all measure")
        if replies:
            try:
                self._receive(replies)
            except Exception as raised:
                error = raised
        if error is not None:
            self.lose(error)

    def _parse(self, data: bytes, replies: list[Reply]) -> Exception | None:
        """Append what is complete; the error where it is no RESP, or of no use (a map with a list as a key)."""
        try:
            self._reader.feed(data)
            gets = self._reader.gets
            while (reply := gets()) is not _NO_MORE:
                replies.append(reply)
        except (InvalidResponse, TypeError, ValueError, MemoryError) as error:
            return InvalidResponse(str(error))
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.lose(exc or LinkError("closed by Redis"))

    def lose(self, error: BaseException) -> None:
        """End it. Idempotent."""
        if not self.lost.done():
            self.lost.set_result(error)
            self._transport.abort()
