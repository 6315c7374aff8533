"""The opening of a WebSocket that follows one task (RFC 6455): upgrade, then subscribe."""

import msgspec

from server.bench.stage import Task
from server.bench.viewers import Opening

_TEXT, _MASKED, _LONG = 0x81, 0x80, 126


def socket_opening(task: Task) -> Opening:
    request = (
        "GET /api/generate/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"Authorization: Bearer {task.token}\r\n\r\n"
    )
    return Opening(request.encode(), b'"subscribed"', _frame({"type": "subscribe", "taskIds": [task.id]}))


def _frame(message: object) -> bytes:
    """A text frame, masked with zeros: a mask there must be, which one nobody says."""
    data = msgspec.json.encode(message)
    size = len(data)
    length = bytes([_MASKED | size]) if size < _LONG else bytes([_MASKED | _LONG, *size.to_bytes(2, "big")])
    return bytes([_TEXT]) + length + bytes(4) + data
