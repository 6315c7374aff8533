"""uvicorn's protocols with the limits it leaves out: time and size of a request's head and body, unread pongs.

Without them a client that sends a byte now and then, or reads nothing, holds a connection and memory for ever.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

HEAD_BYTES_MAX = 32_768
# From the connection, or the first byte of a later request, to the last byte of its body.
REQUEST_SECONDS_MAX = 30.0
LINGER_SECONDS = 1.0
_PROBLEM = (
    b'{"type":"about:blank","title":"The head of the request is too large","status":431,'
    b'"detail":"A request line and its headers may have 32768 bytes","code":"head_too_large"}'
)
TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_PROBLEM), _PROBLEM)
)


class LimitedHttp(HttpToolsProtocol):
    """HTTP/1.1 whose requests have to arrive in time."""

    _late: asyncio.TimerHandle | None = None
    _head_bytes: int | None = 0  # None while a body is read
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._expect()

    def _expect(self) -> None:
        self._arrived()
        self._late = self.loop.call_later(REQUEST_SECONDS_MAX, self._too_late)

    def _arrived(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self._late = None
        self.transport.abort()

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
        if self._late is None:
            self._expect()

    def on_headers_complete(self) -> None:
        self._head_bytes = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        self._arrived()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        self._arrived()
        super().handle_websocket_upgrade()


class LimitedWebSocket(WebSocketsSansIOProtocol):
    """A WebSocket whose client has to read the pongs it asks for."""

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.transport.abort()
