"""Requests that do not arrive in time are cut off, all by one timer; and what is done with is freed at once."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any, cast
from unittest.mock import Mock

import pytest
import uvicorn
from uvicorn.server import ServerState

from server.protocols import LOOK_SECONDS_MIN, REQUEST_SECONDS_MAX, Arrivals, LimitedHttp

pytestmark = pytest.mark.pure

REQUEST = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"


class Clock:
    """A loop of which only the time is used; at most one timer is set at a time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timer: tuple[float, Callable[[], None]] | None = None

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[[], None]) -> object:
        assert self.timer is None, "one timer is enough"
        self.timer = (self.now + seconds, call)
        return self.timer

    def advance(self, to: float) -> None:
        while self.timer is not None and self.timer[0] <= to:
            (self.now, call), self.timer = self.timer, None
            call()
        self.now = to


def test_each_is_cut_off_when_its_own_time_is_over() -> None:
    clock = Clock()
    arrivals = Arrivals(cast(asyncio.AbstractEventLoop, clock))
    connections = [Mock() for _ in range(20)]
    for second, connection in enumerate(connections):
        clock.advance(float(second))
        arrivals.expect(connection)
    arrivals.arrived(connections[3])
    arrivals.arrived(connections[3])
    clock.advance(20.0)
    arrivals.expect(connections[4])  # its next request
    cut: dict[int, float] = {}
    for tenth in range(200, 700):
        clock.advance(tenth / 10)
        for number, connection in enumerate(connections):
            if connection.transport.abort.called and number not in cut:
                cut[number] = tenth / 10
    assert sorted(cut) == [number for number in range(20) if number != 3]
    for number, at in cut.items():
        began = 20 if number == 4 else number
        assert 0 <= at - (began + REQUEST_SECONDS_MAX) <= LOOK_SECONDS_MIN + 0.1, number
    assert all(connection.transport.abort.call_count <= 1 for connection in connections)
    assert clock.timer is None, "nobody is awaited"


def connected(app: Any) -> tuple[LimitedHttp, ServerState]:
    transport = Mock(spec=asyncio.Transport)
    transport.is_closing.return_value = False
    transport.get_extra_info.return_value = None
    state = ServerState()
    protocol = LimitedHttp(uvicorn.Config(app, lifespan="off", log_config=None), state, {})
    protocol.connection_made(transport)
    return protocol, state


async def test_a_connection_is_freed_when_it_is_lost_and_a_request_when_it_is_answered() -> None:
    requests: list[weakref.ref[Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        requests.append(weakref.ref(receive.__self__))
        assert scope["extensions"]["taskbeam.hand_over"].possible
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    protocol, state = connected(app)
    gc.disable()
    try:
        for _ in range(2):
            protocol.data_received(REQUEST)
            await asyncio.gather(*state.tasks)
            await asyncio.sleep(0)
        assert [request() is None for request in requests] == [True, False]
        protocol.connection_lost(None)
        protocol.transport = None  # type: ignore[assignment]  # a Mock keeps whom it was called with
        gone = weakref.ref(protocol)
        del protocol
        await asyncio.sleep(0)
        assert requests[1]() is None
        assert gone() is None
    finally:
        gc.enable()
