"""A WebSocket client on a bare asyncio protocol: the library decides what the bytes mean, nothing here waits."""

import asyncio
from collections.abc import Callable
from typing import cast

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from server.clients.origin import Origin

MESSAGE_BYTES_MAX = 4 * 1024 * 1024


class Socket(asyncio.Protocol):
    """`on_open` when the handshake is done, `on_text` per message; `done` when it has ended.

    `status` is of the handshake's answer; `heard` the loop's time of the last bytes.
    """

    def __init__(
        self, origin: Origin, path: str, on_open: Callable[[], None], on_text: Callable[[bytes], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        uri = parse_uri(f"{'wss' if origin.tls else 'ws'}://{origin.host}{origin.prefix}{path}")
        self._protocol = ClientProtocol(uri, max_size=MESSAGE_BYTES_MAX)
        self._headers = origin.headers
        self._on_open = on_open
        self._on_text = on_text
        self._transport: asyncio.Transport | None = None
        self.status = 0
        self.heard = loop.time()
        self.done: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, but does not say so
        request = self._protocol.connect()
        request.headers.update(self._headers)
        self._protocol.send_request(request)
        self._write()

    def data_received(self, data: bytes) -> None:
        self.heard = asyncio.get_running_loop().time()
        self._protocol.receive_data(data)
        self._take()

    def eof_received(self) -> None:
        self._protocol.receive_eof()
        self._take()

    def send(self, text: bytes) -> None:
        """Drops it when the connection is not open (any more)."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_text(text)
            self._write()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def abort(self) -> None:
        """Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    def _take(self) -> None:
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                self.status = event.status_code
                if self._protocol.state is State.OPEN:
                    self._on_open()
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self._on_text(bytes(event.data))
        self._write()
        if self._protocol.close_expected():
            self.abort()

    def _write(self) -> None:
        for data in self._protocol.data_to_send():
            if self._transport is not None and not self._transport.is_closing():
                if data:
                    self._transport.write(data)
                else:
                    self._transport.close()
