"""The proxy for callbacks: late, twice, crossed, dropped; all else passes as it is."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import cast

import pytest

from server.chaos import callback_proxy
from server.chaos.callback_proxy import CallbackProxy
from server.chaos.exchange import Message, ask, write_message
from tests.receiver import Receiver, Reply, Request

PATH = callback_proxy.CALLBACK


@pytest.fixture
async def web() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:

        async def say(request: Request) -> Reply:
            return Reply(200, b"heard " + request.body)

        receiver.on(PATH, say)
        receiver.on("/api/generate/progress", say)
        yield receiver
    receiver.listener.close()


@pytest.fixture
async def proxy(web: Receiver) -> AsyncIterator[CallbackProxy]:
    made = CallbackProxy()
    await made.start([web.listener.getsockname()[:2]])
    yield made
    await made.stop()


async def send(proxy: CallbackProxy, body: bytes, path: str = PATH) -> Message | None:
    request = write_message(f"POST {path}?task=a HTTP/1.1", {"Host": "here", "Upstash-Signature": "s"}, body)
    return await ask(proxy.address, request, 3)


def bodies(web: Receiver) -> list[bytes]:
    return [request.body for request in web.seen]


async def test_honest_passes_everything_on(proxy: CallbackProxy, web: Receiver) -> None:
    answer = await send(proxy, b"one")
    assert answer is not None
    assert (answer.status, answer.body) == (200, b"heard one")
    (request,) = web.seen
    assert request.target == f"{PATH}?task=a"
    assert request.headers["upstash-signature"] == "s"
    assert proxy.spoilt == 0


async def test_late(proxy: CallbackProxy, web: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callback_proxy, "LATE_SECONDS", 0.2)
    proxy.turn("late")
    began = time.monotonic()
    answer = await send(proxy, b"one")
    assert answer is not None
    assert time.monotonic() - began >= 0.2
    assert bodies(web) == [b"one"]


async def test_twice(proxy: CallbackProxy, web: Receiver) -> None:
    proxy.turn("twice")
    answer = await send(proxy, b"one")
    assert answer is not None
    assert bodies(web) == [b"one", b"one"]


async def test_crossed(proxy: CallbackProxy, web: Receiver) -> None:
    proxy.turn("crossed")
    first = asyncio.create_task(send(proxy, b"one"))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(send(proxy, b"two"))
    answers = [cast(Message, await each) for each in (first, second)]
    assert [answer.body for answer in answers] == [b"heard one", b"heard two"]
    assert bodies(web) == [b"two", b"one"]


async def test_one_that_has_nobody_to_cross_with_goes_by_itself(
    proxy: CallbackProxy, web: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callback_proxy, "CROSS_SECONDS_MAX", 0.1)
    proxy.turn("crossed")
    assert await send(proxy, b"one") is not None
    assert bodies(web) == [b"one"]


async def test_dropped_is_never_answered_and_every_other_one_not_even_heard(
    proxy: CallbackProxy, web: Receiver
) -> None:
    proxy.turn("dropped")
    first = asyncio.create_task(send(proxy, b"one"))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(send(proxy, b"two"))
    await asyncio.sleep(0.1)
    assert not first.done()
    assert not second.done()
    assert bodies(web) == [b"one"]
    proxy.turn("honest")  # and they are cut off
    assert await first is None
    assert await second is None
    assert await send(proxy, b"three") is not None


async def test_reports_are_no_callbacks(proxy: CallbackProxy, web: Receiver) -> None:
    proxy.turn("twice")
    assert await send(proxy, b"40", "/api/generate/progress") is not None
    assert bodies(web) == [b"40"]
    assert proxy.spoilt == 0
