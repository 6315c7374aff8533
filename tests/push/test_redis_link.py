"""Reading what Redis sends, however it comes in pieces; and what of redis-py's inside the taking over lives by."""

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import hiredis
import msgspec
import pytest
import redis.asyncio
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection

from server.push.redis_link import REPLY_BYTES_MAX, UNSENT_BYTES_MAX, Link, Reply, pack, refusal

pytestmark = pytest.mark.pure

BODY = b'{"a":"\r\n$5\r\n\xc3\xa9"}'
CONVERSATION = (
    b"+PONG\r\n"
    b"*3\r\n$9\r\nsubscribe\r\n$6\r\ntask:a\r\n:1\r\n"
    b">3\r\n$9\r\nsubscribe\r\n$6\r\ntask:b\r\n:2\r\n"
    b"*3\r\n$7\r\nmessage\r\n$6\r\ntask:a\r\n$%d\r\n%b\r\n"
    b">3\r\n$7\r\nmessage\r\n$6\r\ntask:b\r\n$%d\r\n%b\r\n"
    b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"
    b">2\r\n$6\r\nMOVING\r\n:15\r\n#f\r\n_\r\n-ERR no\r\n:7\r\n"
) % (len(BODY), BODY, len(BODY), BODY)
SAID = [
    b"PONG",
    [b"subscribe", b"task:a", 1],
    [b"subscribe", b"task:b", 2],
    [b"message", b"task:a", BODY],
    [b"message", b"task:b", BODY],
    [b"pong", b""],
    [b"MOVING", 15],
    False,
    None,
    "ERR no",
    7,
]


class Transport(asyncio.Transport):
    """Takes what is written; `unsent` is what Redis has not taken."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unsent = 0
        self.aborted = False

    def write(self, data: Any) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def abort(self) -> None:
        self.aborted = True


class Ends:
    """A link, its transport, and what it was told."""

    def __init__(self) -> None:
        self.transport = Transport()
        self.replies: list[Reply] = []
        self.link = Link(self.replies.extend)
        self.link.connection_made(self.transport)

    @property
    def said(self) -> list[Reply]:
        return [str(reply) if isinstance(reply, Exception) else reply for reply in self.replies]

    def ended(self) -> str:
        """Why it ended: the type of the error."""
        assert self.transport.aborted
        return type(self.link.lost.result()).__name__


async def test_cut_anywhere_it_is_the_same() -> None:
    for cut in range(len(CONVERSATION) + 1):
        ends = Ends()
        for part in (CONVERSATION[:cut], CONVERSATION[cut:]):
            ends.link.data_received(part)
        assert ends.said == SAID, cut
        assert not ends.link.lost.done()


async def test_byte_by_byte_it_is_the_same() -> None:
    ends = Ends()
    for byte in CONVERSATION:
        ends.link.data_received(bytes([byte]))
    assert ends.said == SAID


@pytest.mark.parametrize(
    "garbage", [b"HTTP/1.1 400 Bad Request\r\n", b"*-5\r\n", b"$x\r\n", b"%1\r\n*0\r\n:1\r\n", b"\0"]
)
async def test_garbage_ends_it_and_what_came_before_counts(garbage: bytes) -> None:
    ends = Ends()
    ends.link.data_received(b"+PONG\r\n" + garbage)
    assert ends.said == [b"PONG"]
    assert ends.ended() == "InvalidResponse"
    ends.link.data_received(b"+PONG\r\n")
    assert ends.said == [b"PONG"], "nothing is heard of a link that was lost"


@pytest.mark.parametrize(
    "begin", [b"$99999999\r\n", b"*999999\r\n", b"*3\r\n$7\r\nmessage\r\n$6\r\ntask:a\r\n$99999999\r\n"]
)
async def test_a_reply_beyond_measure_is_not_waited_for(begin: bytes) -> None:
    ends = Ends()
    ends.link.data_received(b"+PONG\r\n")
    ends.link.data_received(begin)
    piece = (b":1\r\n" if begin[:2] == b"*9" else b"aaaa") * 2048
    for _ in range(REPLY_BYTES_MAX // len(piece) - 1):
        ends.link.data_received(piece)
    assert not ends.transport.aborted
    for _ in range(2):
        ends.link.data_received(piece)
    assert ends.ended() == "InvalidResponse"
    assert ends.said == [b"PONG"]


async def test_one_that_is_large_is() -> None:
    ends = Ends()
    data = b"a" * (REPLY_BYTES_MAX - 100)
    whole = b"$%d\r\n%b\r\n" % (len(data), data)
    for _ in range(3):
        for start in range(0, len(whole), 65_536):
            ends.link.data_received(whole[start : start + 65_536])
    assert ends.said == [data] * 3
    assert not ends.transport.aborted


async def test_whoever_cannot_take_it_ends_it() -> None:
    ends = Ends()

    def receive(replies: list[Reply]) -> None:
        raise KeyError(replies[0])

    ends.link._receive = receive
    ends.link.data_received(b"+PONG\r\n")
    assert ends.ended() == "KeyError"


async def test_a_connection_that_is_closed_is_lost_once() -> None:
    ends = Ends()
    ends.link.connection_lost(None)
    assert ends.ended() == "ConnectionError"
    ends.link.lose(ValueError())
    ends.link.connection_lost(OSError())
    assert ends.ended() == "ConnectionError"
    ends.link.write(b"more")
    assert ends.transport.written == b""


async def test_what_redis_does_not_take_is_not_kept_for_ever() -> None:
    ends = Ends()
    ends.transport.unsent = UNSENT_BYTES_MAX
    ends.link.write(b"one")
    assert ends.transport.written == b"one"
    ends.transport.unsent += 1
    ends.link.write(b"two")
    assert ends.transport.written == b"one"
    assert ends.ended() == "ConnectionError"


def replies_to(data: bytes) -> Iterator[Any]:
    reader = hiredis.Reader()
    reader.feed(data)
    while reply := reader.gets():
        yield reply


def test_commands_go_in_one_piece() -> None:
    packed = pack([("PUBLISH", "task:é", b"\r\n"), (b"SUBSCRIBE", b"a", b"b")])
    assert list(replies_to(packed)) == [[b"PUBLISH", "task:é".encode(), b"\r\n"], [b"SUBSCRIBE", b"a", b"b"]]
    assert pack([]) == b""


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://:hunter2@redis.test/1?protocol=2&ssl=hunter2", "has an option that redis-py does not know"),
        ("redis://redis.test?password=a&hunter2=b", "has an option that redis-py does not know"),
        ("redis://redis.test?retry=hunter2", "has an option that redis-py does not know"),
        ("redis://redis.test?db=hunter2", "cannot be used: Invalid value for 'db'"),
        ("redis://redis.test?protocol=4", "cannot be used: protocol must be either 2 or 3"),
        ("redis+sentinel://redis.test?service=m&hunter2=b", "has an option that redis-py does not know"),
    ],
)
def test_an_option_that_does_not_exist_is_refused_unshown(url: str, reason: str) -> None:
    said = refusal(url)
    assert said is not None
    assert said.startswith(reason)
    assert "hunter2" not in said


@pytest.mark.parametrize(
    "url", ["redis://redis.test", "unix:///s?db=2", "redis+sentinel://:hunter2@one,two/3?service=m&protocol=2"]
)
def test_one_that_does_is_not(url: str) -> None:
    assert refusal(url) is None


def test_a_snapshot_is_far_below_what_is_refused() -> None:
    longest = msgspec.json.encode("\0" * 32_000)
    assert 4 * len(longest) < REPLY_BYTES_MAX


def test_redis_py_is_inside_what_the_taking_over_lives_by() -> None:
    """If this fails after an update of redis-py, read server/push/redis_link.py and its new source side by side."""
    assert redis.__version__.split(".")[0] == "8"
    pool: Any = redis.asyncio.ConnectionPool.from_url("redis://alice:p@redis.test:7/2?client_name=x&protocol=2")
    connection: Any = pool.make_connection()
    assert type(connection) is Connection
    assert (connection.host, connection.port, connection.db, connection.username) == ("redis.test", 7, 2, "alice")
    assert connection._reader is None
    assert connection._writer is None
    parser: Any = connection._parser
    assert type(parser.parse_error("NOPERM x")).__name__ == "NoPermissionError"
    for kind in (Connection, SSLConnection, UnixDomainSocketConnection):
        assert "_reader" in inspect.getsource(kind._connect) or kind is SSLConnection
        assert kind.can_read is AbstractConnection.can_read
    # A connection closes the transport of a StreamWriter that it still holds, and of no other.
    assert "_writer" in inspect.getsource(AbstractConnection.__del__)
    assert "self._writer.close()" in inspect.getsource(AbstractConnection._close)
