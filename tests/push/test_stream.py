"""The protocol of a stream, against a transport that fills up and empties as it likes: framing, order, ends."""

import asyncio
from random import Random
from typing import Any, cast
from unittest.mock import Mock

import pytest
import uvicorn
from uvicorn.server import ServerState

from server.errors import AccessTokenExpired
from server.metrics import Metrics
from server.protocols import LimitedHttp
from server.push.follow import Follower
from server.push.hub import Subscription
from server.push.stream import HEARTBEAT_SECONDS, Pulse, Stream, Streams
from server.push.turns import Turns
from server.tally import Tally

pytestmark = pytest.mark.pure


class Transport:
    """Takes what is written; above `room` it says that it is full, once."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.held = 0
        self.written = b""
        self.closed = False
        self.aborted = False
        self.full = False
        self.stream: Stream | None = None

    def write(self, data: bytes) -> None:
        assert not self.closed, "written after the end"
        self.written += data
        self.held += len(data)
        if self.held > self.room and not self.full:
            self.full = True
            assert self.stream is not None
            self.stream.pause_writing()

    def drain(self) -> None:
        self.held = 0
        if self.full and self.stream is not None:
            self.full = False
            self.stream.resume_writing()

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return self.held

    def set_write_buffer_limits(self, high: int) -> None:
        assert high <= 65_536

    @property
    def body(self) -> bytes:
        """What a strict reader of chunks makes of it; the last chunk must be the end."""
        rest, body = self.written, b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            assert size == b"%x" % length
            if length == 0:
                assert rest == b"\r\n", "something follows the last chunk"
                return body
            assert rest[length : length + 2] == b"\r\n", "a chunk of another length than it says"
            body, rest = body + rest[:length], rest[length + 2 :]
        return body

    @property
    def ended(self) -> bool:
        return self.written.endswith(b"\r\n0\r\n\r\n")


class Source:
    """A follower, its subscription and its framer: what `tell` is given, `news` gives out, in order."""

    def __init__(self) -> None:
        self.waiting: list[bytes] = []
        self.first: list[bytes] = [b"first;"]
        self.done = False
        self.last = False
        self.closing = False
        self.closed = 0
        self.behind = False
        self.found: list[bytes] = []
        self.reads = 0
        self.away = False
        self.subject = {"task_id": "t"}
        self.ended: Any = None
        self.subscription = Subscription("task:t", 0, lambda: None, Tally())

    def tell(self, *frames: bytes) -> None:
        self.waiting += frames
        self.subscription.attend()

    # as a Follower
    ordinary = False

    def wake_with(self, wake: Any) -> None:
        self.subscription.wake = wake
        self.subscription.attend()

    async def catch_up(self) -> bool:
        await asyncio.sleep(0)
        self.reads += 1
        if self.away:
            asyncio.get_running_loop().call_later(0.01, self.subscription.attend)
            return False
        self.behind = False
        self.waiting += self.found
        return True

    def close(self) -> None:
        self.closed += 1

    # as Frames
    def begin(self) -> list[bytes]:
        return self.first

    def news(self) -> list[bytes]:
        frames, self.waiting = self.waiting, []
        self.done = self.last and not self.behind
        return frames

    def bye(self) -> bytes:
        return b"bye;"


def opened(
    source: Source, room: int = 10**9, pulse: Pulse | None = None, coalesce_ms: int = 0
) -> tuple[Transport, Stream, set[Any]]:
    transport, connections = Transport(room), set[Any]()
    turns = Turns(asyncio.get_running_loop(), coalesce_ms)
    stream = Stream(
        cast(asyncio.Transport, transport),
        connections,
        cast(Follower, source),
        source,
        Streams(turns, pulse or Pulse(), Metrics()),
    )
    transport.stream = stream
    stream.begin()
    return transport, stream, connections


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_comes_together_is_one_write_and_the_end_closes() -> None:
    source = Source()
    transport, stream, connections = opened(source)
    assert connections == {stream}
    before = len(transport.written)
    source.tell(b"a;", b"b;")
    source.tell(b"c;")
    await turns()
    assert transport.written[before:] == b"6\r\na;b;c;\r\n"
    source.last = True
    source.tell(b"end;")
    await turns()
    assert (transport.body, transport.ended, transport.closed) == (b"first;a;b;c;end;", True, True)
    source.tell(b"more;")
    await turns()
    stream.connection_lost(None)
    assert connections == set()
    assert source.closed == 1


async def test_one_that_had_ended_when_it_was_joined() -> None:
    source = Source()
    source.done = True
    transport, _, _ = opened(source)
    await turns()
    assert (transport.body, transport.ended, transport.closed) == (b"first;", True, True)


async def test_a_goodbye_by_the_hub_or_by_the_server() -> None:
    for by_server in (False, True):
        source = Source()
        transport, stream, _ = opened(source)
        await turns()
        if by_server:
            stream.shutdown()
        else:
            source.closing = True
            source.tell()
        await turns()
        stream.shutdown()  # the server asks all of them
        assert (transport.body, transport.ended, transport.closed) == (b"first;bye;", True, True)


async def test_who_does_not_read_is_not_waited_for_once_his_right_has_ended() -> None:
    source = Source()
    transport, _, _ = opened(source, room=3)
    await turns()
    source.tell(b"more;")
    await turns()
    assert not transport.aborted, "as long as he has it"
    source.ended = AccessTokenExpired()
    source.tell()
    await turns()
    assert transport.aborted


async def test_what_is_only_in_the_log_is_read_and_tried_again() -> None:
    source = Source()
    transport, _, _ = opened(source)
    source.behind, source.away, source.found = True, True, [b"read;"]
    source.tell()
    await turns()
    source.tell()
    await turns()
    assert transport.body == b"first;"
    assert source.reads <= 3, "it does not ask again and again while the database is away"
    source.away = False
    await asyncio.sleep(0.03)
    assert transport.body == b"first;read;"


async def test_a_read_that_fails_ends_the_stream_and_one_of_a_lost_stream_is_cancelled() -> None:
    source = Source()
    transport, stream, _ = opened(source)

    async def broken() -> bool:
        raise ValueError("a defect")

    source.catch_up = broken  # type: ignore[method-assign]
    source.behind = True
    source.tell()
    await turns()
    assert transport.aborted
    source = Source()
    transport, stream, _ = opened(source)
    cancelled = asyncio.Event()

    async def endless() -> bool:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return True

    source.catch_up = endless  # type: ignore[method-assign]
    source.behind = True
    source.tell()
    await turns()
    stream.connection_lost(ConnectionResetError())
    await turns()
    assert cancelled.is_set()
    assert source.closed == 1


async def test_whoever_reads_nothing_is_cut_off_and_until_then_holds_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.push.stream.SEND_SECONDS_MAX", 0.05)
    source = Source()
    transport, stream, _ = opened(source, room=10)
    source.tell(b"x" * 20)
    await turns()
    held = len(transport.written)
    source.tell(b"y" * 1_000_000)
    stream.beat()
    await turns()
    assert len(transport.written) == held, "nothing is written to who does not read"
    assert source.waiting, "and what is new stays where it is conflated"
    await asyncio.sleep(0.1)
    assert transport.aborted
    # Who reads a little is not.
    transport, _, _ = opened(Source(), room=3)
    for _ in range(4):
        await asyncio.sleep(0.03)
        transport.held -= 1
    assert not transport.aborted
    # Nor who reads again in time.
    transport, _, _ = opened(Source(), room=3)
    transport.drain()
    await asyncio.sleep(0.1)
    assert not transport.aborted


async def test_every_stream_has_a_heartbeat_each_fifteen_seconds() -> None:
    pulse = Pulse()
    streams = []
    for _ in range(HEARTBEAT_SECONDS):
        streams.append(opened(Source(), pulse=pulse))
        streams.append(opened(Source(), pulse=pulse))
        pulse.beat()
    before = [len(transport.written) for transport, _, _ in streams]
    each = []
    for _ in range(HEARTBEAT_SECONDS):
        count = sum(transport.body.count(b": heartbeat\n\n") for transport, _, _ in streams)
        pulse.beat()
        each.append(sum(transport.body.count(b": heartbeat\n\n") for transport, _, _ in streams) - count)
    assert each == [2] * HEARTBEAT_SECONDS, "spread over the time"
    assert all(
        len(t.written) == b + len(b"e\r\n: heartbeat\n\n\r\n") for (t, _, _), b in zip(streams, before, strict=True)
    )
    transport, stream, _ = streams[0]
    stream.connection_lost(None)
    size = len(transport.written)
    for _ in range(2 * HEARTBEAT_SECONDS):
        pulse.beat()
    assert len(transport.written) == size


async def test_a_request_that_never_came_does_not_end_the_stream_of_the_one_before() -> None:
    """A part of the next request is behind the first: its time-out must go when the connection is handed over."""
    taken: list[asyncio.Protocol] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        taken.append(scope["extensions"]["taskbeam.hand_over"].take(lambda _, connections: _Handed(connections)))

    transport = Mock(spec=asyncio.Transport)
    transport.is_closing.return_value = False
    transport.get_extra_info.return_value = None
    state = ServerState()
    protocol = LimitedHttp(uvicorn.Config(app, lifespan="off", log_config=None), state, {})
    protocol.connection_made(transport)
    protocol.data_received(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTT")
    assert protocol.arrivals.expects(protocol), "the second request is waited for"
    await turns()
    (made,) = taken
    assert not protocol.arrivals.expects(protocol)
    transport.set_protocol.assert_called_once_with(made)
    assert state.connections == {made}
    await asyncio.gather(*state.tasks)
    transport.close.assert_not_called()


class _Handed(asyncio.Protocol):
    def __init__(self, connections: Any) -> None:
        connections.add(self)


async def test_whatever_the_client_reads_and_when_it_gets_all_of_it_in_order() -> None:
    for seed in range(100):
        rng = Random(seed)
        source = Source()
        source.first = [b"f%d;" % n * rng.choice([1, 1_000, 30_000]) for n in range(rng.randrange(1, 6))]
        expected = list(source.first)
        transport, stream, _ = opened(source, room=rng.choice([1, 50_000, 10**9]))
        for number in range(rng.randrange(20)):
            match rng.randrange(4):
                case 0:
                    transport.drain()
                case 1:
                    stream.beat()
                case 2:
                    await turns(1)
                case _:
                    frames = [b"n%d.%d;" % (number, part) * rng.choice([1, 9_000]) for part in range(rng.randrange(4))]
                    source.tell(*frames)
                    expected += frames
        source.last = True
        source.tell(b"end;")
        for _ in range(200):
            await turns(2)
            if transport.closed:
                break
            transport.drain()
        body = transport.body.replace(b": heartbeat\n\n", b"")
        assert body == b"".join(expected) + b"end;", f"seed {seed}"
        assert transport.ended
        assert transport.closed
