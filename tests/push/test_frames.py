"""Frames of ours between those of uvicorn's WebSocket: what this takes from its inside is held here."""

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest
import uvicorn
from uvicorn.server import ServerState
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from server.protocols import Frames, LimitedWebSocket
from server.push import wire

pytestmark = pytest.mark.pure


class Peers:
    """Our protocol and, at the other end of no wire, a strict client of another hand."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.frames: Frames | None = None
        self.go_on = asyncio.Event()
        self.transport = Mock(spec=asyncio.Transport)
        self.transport.is_closing.return_value = False
        self.transport.get_extra_info.return_value = None
        self.client = ClientProtocol(parse_uri("ws://a/"))
        config = uvicorn.Config(
            self.app, interface="asgi3", lifespan="off", log_config=None, ws_per_message_deflate=False
        )
        self.server = LimitedWebSocket(config, ServerState(), {})
        self.transport.write.side_effect = self.client.receive_data
        self.transport.close.side_effect = lambda: setattr(self.transport.is_closing, "return_value", True)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.frames = scope["extensions"]["taskbeam.frames"]
        assert not self.frames.ready, "not before the handshake"
        self.told.append(await receive())
        await send({"type": "websocket.accept"})
        await self.go_on.wait()
        await send({"type": "websocket.close", "code": 1008, "reason": "enough"})

    async def shake_hands(self) -> Frames:
        self.server.connection_made(self.transport)
        self.client.send_request(self.client.connect())
        self.send()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.heard()
        assert self.frames is not None
        return self.frames

    def send(self) -> None:
        self.server.data_received(b"".join(self.client.data_to_send()))

    def heard(self) -> list[tuple[Opcode, bytes]]:
        return [(e.opcode, bytes(e.data)) for e in self.client.events_received() if isinstance(e, Frame)]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 70_000])
async def test_a_client_of_another_hand_reads_frames_of_any_size(size: int) -> None:
    peers = Peers()
    frames = await peers.shake_hands()
    assert frames.ready
    message = b"x" * size
    frames.write(wire.ws_frame(message) + wire.ws_frame(b"next"))
    assert peers.heard() == [(Opcode.TEXT, message), (Opcode.TEXT, b"next")]
    peers.server.stop_keepalive()
    for task in list(peers.server.tasks):
        task.cancel()


async def test_they_come_between_pongs_and_never_while_the_client_does_not_read_or_after_the_close() -> None:
    peers = Peers()
    frames = await peers.shake_hands()
    frames.write(wire.ws_frame(b"a"))
    peers.client.send_ping(b"1")
    peers.send()
    frames.write(wire.ws_frame(b"b"))
    assert peers.heard() == [(Opcode.TEXT, b"a"), (Opcode.PONG, b"1"), (Opcode.TEXT, b"b")]
    peers.server.pause_writing()
    assert not frames.ready
    peers.server.resume_writing()
    assert frames.ready
    peers.go_on.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not frames.ready, "a close frame is the last"
    ((opcode, _),) = peers.heard()
    assert opcode is Opcode.CLOSE
    peers.server.connection_lost(None)
    assert not frames.ready


async def test_nor_after_the_client_has_closed_or_is_gone() -> None:
    for gone in (False, True):
        peers = Peers()
        frames = await peers.shake_hands()
        if gone:
            peers.transport.is_closing.return_value = True
        else:
            peers.client.send_close(1000)
            peers.send()
        assert not frames.ready
        peers.server.stop_keepalive()
        for task in list(peers.server.tasks):
            task.cancel()
