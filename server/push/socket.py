"""The way out of one WebSocket: frames that were made once for all, or text through the ASGI server.

Where our own protocol holds the connection (protocols.Frames), what many are told is written as it is, between the
frames that uvicorn writes. Under any other ASGI server each message goes through send().
"""

import asyncio
import contextlib
from typing import Protocol, cast

from starlette.websockets import WebSocket, WebSocketState

SEND_SECONDS_MAX = 30.0
END_SECONDS_MAX = 2.0
# The scope's extension (protocols.Frames) by which frames can be written.
FRAMES = "taskbeam.frames"


class Over(Exception):
    """Nothing is sent any more but why: the right to this connection has ended."""


class Frames(Protocol):
    """A connection that takes whole frames, as long as it is `ready`: open, and read from at the other end."""

    @property
    def ready(self) -> bool: ...

    def write(self, frames: bytes) -> None: ...


class Socket:
    """`over` once the right to it has ended."""

    __slots__ = ("_frames", "_sending", "_websocket", "over")

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._frames = cast(Frames | None, websocket.scope.get("extensions", {}).get(FRAMES))
        self._sending = asyncio.Lock()
        self.over = False

    @property
    def ready(self) -> bool:
        """Whether write() can be used now."""
        return self._frames is not None and self._frames.ready and not self.over and not self._sending.locked()

    def write(self, frames: bytes) -> None:
        """While it is ready: one or more whole frames."""
        if self._frames is not None:
            self._frames.write(frames)

    async def send(self, message: bytes) -> None:
        """Raises Over, also where the right ended while it waited for others to be sent, and TimeoutError."""
        async with self._sending, asyncio.timeout(SEND_SECONDS_MAX):
            if self.over:
                raise Over
            await self._websocket.send_text(message.decode())

    async def end(self, message: bytes, reason: str) -> None:
        """Say why nothing follows, and close, where the client reads; one that does not is not waited for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS_MAX), self._sending:
                await self._websocket.send_text(message.decode())
                await self.close(1008, reason)

    async def close(self, code: int, reason: str) -> None:
        if self._websocket.application_state is not WebSocketState.DISCONNECTED:
            await self._websocket.close(code, reason)
