"""uvicorn's protocols with the limits it leaves out, and the hand-over of a connection to a stream.

Without limits to time and size of a request's head and body, and to unread pongs, a client that sends a byte now and
then, or reads nothing, holds a connection and memory for ever.

THE HAND-OVER is the one place that knows how uvicorn works inside. It does for a stream of events what uvicorn itself
does for a WebSocket: once the head of the response is out, the transport gets another protocol, and the ASGI task may
end. tests/push/test_handover.py fails where a new version of uvicorn breaks this.
"""

import asyncio
import functools
import itertools
import weakref
from collections.abc import Callable, MutableSet
from typing import Any, TypeAlias, TypeVar

import msgspec
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import get_remote_addr, is_ssl
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request
from websockets.protocol import State

from server.errors import HeadTooLarge, problem_body

HEAD_BYTES_MAX = 32_768
# From the connection, or the first byte of a later request, to the last byte of its body.
REQUEST_SECONDS_MAX = 30.0
LOOK_SECONDS_MIN = 1.0
LINGER_SECONDS = 1.0
_PROBLEM = msgspec.json.encode(
    problem_body(HeadTooLarge(f"A request line and its headers may have {HEAD_BYTES_MAX} bytes"))
)
TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_PROBLEM), _PROBLEM)
)


P = TypeVar("P", bound=asyncio.Protocol)
MakeProtocol: TypeAlias = Callable[[asyncio.Transport, MutableSet[Any]], P]


class HandOver:
    """The connection of one request, for whoever answers it with a stream: the scope's extension taskbeam.hand_over."""

    __slots__ = ("_cycle", "_protocol")

    def __init__(self, protocol: "LimitedHttp", cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = weakref.proxy(cycle)  # whose scope holds this: no circle, or only the collector would free them

    @property
    def possible(self) -> bool:
        """Not before the request is whole, and not where something lies between us and the client."""
        cycle = self._cycle
        return (
            not cycle.more_body
            and not cycle.disconnected
            and self._protocol.scheme == "http"
            and cycle.scope["http_version"] == "1.1"
        )

    def take(self, make: MakeProtocol[P]) -> P:
        """After the head was sent: the protocol that `make(transport, connections)` gives has the transport now.

        It has to be in `connections` until it is lost, and to have shutdown(). Requests behind this one are not
        answered, as the head said ("connection: close"). Raises ConnectionResetError.
        """
        protocol = self._protocol
        if not self.possible or protocol.transport.is_closing():
            raise ConnectionResetError
        made = make(protocol.transport, protocol.connections)
        protocol.connections.discard(protocol)
        protocol.pipeline.clear()
        protocol.arrivals.arrived(protocol)  # no later request is waited for
        self._cycle.disconnected = True  # nothing more is owed to it
        protocol.server_state.total_requests += 1
        protocol.flow.resume_reading()
        protocol.transport.set_protocol(made)
        protocol.forget()
        return made


class Arrivals:
    """The connections whose request is still to arrive; those that take too long are cut off, within a second."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._awaited: dict[LimitedHttp, float] = {}  # until when: all have the same time, so the first is due first
        self._timer: asyncio.TimerHandle | None = None

    def expect(self, connection: "LimitedHttp") -> None:
        self._awaited.pop(connection, None)
        self._awaited[connection] = self._loop.time() + REQUEST_SECONDS_MAX
        if self._timer is None:
            self._timer = self._loop.call_later(REQUEST_SECONDS_MAX, self._look)

    def arrived(self, connection: "LimitedHttp") -> None:
        """Idempotent."""
        self._awaited.pop(connection, None)

    def expects(self, connection: "LimitedHttp") -> bool:
        return connection in self._awaited

    def _look(self) -> None:
        now = self._loop.time()
        late = list(itertools.takewhile(lambda connection: self._awaited[connection] <= now, self._awaited))
        for connection in late:
            del self._awaited[connection]
            connection.transport.abort()
        self._timer = None
        if self._awaited:
            first = next(iter(self._awaited.values()))
            self._timer = self._loop.call_later(max(LOOK_SECONDS_MIN, first - now), self._look)


class LimitedHttp(HttpToolsProtocol):
    """HTTP/1.1 whose requests have to arrive in time."""

    _head_bytes: int | None = 0  # None while a body is read
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        # As uvicorn does, but for our own address: the kernel would be asked for it, and nobody here does.
        self.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport)
        self.client = get_remote_addr(transport)
        self.scheme = "https" if is_ssl(transport) else "http"
        self.arrivals.expect(self)

    @functools.cached_property
    def arrivals(self) -> Arrivals:
        """Of this server: a timer for each connection would cost more than to read its request."""
        state: Any = self.server_state
        if not hasattr(state, "arrivals"):
            state.arrivals = Arrivals(self.loop)
        return state.arrivals  # type: ignore[no-any-return]

    def forget(self) -> None:
        """Once nothing more is read: parser and request point back to here."""
        self.parser = self.cycle = self.scope = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._head_bytes is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        # A chunk that ends the head may hold a body as well: only a head that goes on is counted.
        if self._head_bytes is not None and self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            self._refused = True
            self.transport.write(TOO_LARGE)
            # What still comes is dropped for a moment: closing at once would reset the connection, and the client
            # might never read why.
            self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self.arrivals.expects(self):
            self.arrivals.expect(self)

    def on_headers_complete(self) -> None:
        self._head_bytes = None
        super().on_headers_complete()
        if not self.parser.should_upgrade():
            self.scope["extensions"] = {"taskbeam.hand_over": HandOver(self, self.cycle)}  # type: ignore[dict-item]

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        self.arrivals.arrived(self)
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self.arrivals.arrived(self)
        super().connection_lost(exc)
        self.forget()

    def handle_websocket_upgrade(self) -> None:
        self.arrivals.arrived(self)
        super().handle_websocket_upgrade()
        self.forget()


class Frames:
    """Of a WebSocket: whole frames, between those that uvicorn writes. The scope's extension taskbeam.frames."""

    __slots__ = ("_protocol",)

    def __init__(self, protocol: "LimitedWebSocket") -> None:
        self._protocol = protocol

    @property
    def ready(self) -> bool:
        """Whether the handshake is over, no close frame was sent, and the client reads what it is sent."""
        protocol = self._protocol
        return (
            protocol.writable.is_set()
            and protocol.handshake_complete
            and not protocol.close_sent
            and protocol.conn.state is State.OPEN
            and not protocol.transport.is_closing()
        )

    def write(self, frames: bytes) -> None:
        self._protocol.transport.write(frames)


class LimitedWebSocket(WebSocketsSansIOProtocol):
    """A WebSocket whose client has to read the pongs it asks for, and whose frames may be made elsewhere."""

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.handshake_initiated and not self.close_sent:
            self.scope["extensions"]["taskbeam.frames"] = Frames(self)  # type: ignore[assignment]
            event.headers.clear()  # the parser keeps the request; the scope has them as bytes

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.transport.abort()
