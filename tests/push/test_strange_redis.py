"""The bus and the publisher over a server that says what no Redis would say, or nothing."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
import structlog
from redis.exceptions import InvalidResponse, ResponseError

from server.push.publisher import Channels
from server.push.redis_link import UNAVAILABLE, open_link
from tests.push.heard import Heard, change, send


class Scripted:
    """A Redis that answers as it is told; the handshake of redis-py goes as with one of old."""

    def __init__(self, answers: dict[bytes, bytes]) -> None:
        self._answers = {b"HELLO": b"%1\r\n+proto\r\n:3\r\n", b"CLIENT": b"+OK\r\n", **answers}
        self.connections = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                words = [await self._word(reader) for _ in range(int(line[1:]))]
                writer.write(self._answers.get(words[0].upper(), b""))
        writer.close()

    async def _word(self, reader: asyncio.StreamReader) -> bytes:
        return (await reader.readexactly(int((await reader.readline())[1:]) + 2))[:-2]

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for writer in self._writers:
                writer.close()
            await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)


PUSHED = b">2\r\n$6\r\nMOVING\r\n:15\r\n"


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1?no_such=option", "redis://127.0.0.1:1?retry=3"])
async def test_it_would_not_end_the_bus(url: str) -> None:
    with pytest.raises(UNAVAILABLE):
        await open_link(url, lambda replies: None)


@pytest.mark.parametrize("port", [b"0", b"65536", b"99999", b"9" * 5_000, b"-1", b"x", b""])
async def test_nor_would_a_sentinel_that_knows_a_port_that_is_none(port: bytes) -> None:
    master = b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%b\r\n" % (len(port), port)
    async with Scripted({b"SENTINEL": master}).listening() as url:
        with pytest.raises(UNAVAILABLE):
            await open_link(url.replace("redis:", "redis+sentinel:") + "?service=mymaster", lambda replies: None)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({b"PING": b"+PONG\r\n", b"SUBSCRIBE": b"HTTP/1.1 400\r\n"}, "InvalidResponse"),
        ({b"PING": b"+PONG\r\n", b"SUBSCRIBE": b"-NOPERM no\r\n"}, "NoPermissionError"),
        ({b"PING": b"+PONG\r\n", b"SUBSCRIBE": b"$5000000\r\n" + b"a" * 4_000_000}, "InvalidResponse"),
        ({b"HELLO": b"-ERR unknown command\r\n"}, "ResponseError"),
        ({b"HELLO": b"+OK\r\n"}, "ConnectionError"),
        ({b"CLIENT": b"+OK\r\n" + PUSHED}, "ConnectionError"),
    ],
)
async def test_a_server_that_speaks_otherwise_is_left_and_tried_again(answers: dict[bytes, bytes], reason: str) -> None:
    server = Scripted(answers)
    async with server.listening() as url:
        heard = Heard(url.replace("//", "//:hunter2@"))
        heard.bus.subscribe("task:a")
        with structlog.testing.capture_logs() as logs:
            run = asyncio.create_task(heard.bus.run(heard.deliver, heard.connected))
            try:
                await heard.until(lambda: server.connections >= 2 or run.done(), 3)
            finally:
                run.cancel()
                await asyncio.gather(run, return_exceptions=True)
        assert (logs[-1]["event"], logs[-1]["reason"]) == ("redis_away", reason)


async def test_what_nobody_asked_for_is_passed_over() -> None:
    body = change("a").body
    message = b">3\r\n$7\r\nmessage\r\n$6\r\ntask:a\r\n$%d\r\n%b\r\n" % (len(body), body)
    strange = b"*3\r\n$7\r\nmessage\r\n*0\r\n:1\r\n*0\r\n:5\r\n$-1\r\n" + PUSHED
    no_text = b"*3\r\n$7\r\nmessage\r\n$6\r\ntask:a\r\n:5\r\n"
    confirmed = b">3\r\n$9\r\nsubscribe\r\n$6\r\ntask:a\r\n:1\r\n"
    answers = {b"PING": b"+PONG\r\n" + strange, b"SUBSCRIBE": PUSHED + confirmed + confirmed + no_text + message}
    async with Scripted(answers).listening() as url, Heard(url).running() as heard:
        heard.bus.subscribe("task:a")
        await heard.bus.subscribed("task:a", 5)
        await heard.until(lambda: len(heard.items) == 1)
        assert heard.times_connected == 1


async def test_who_waits_in_vain_goes_on_and_is_counted() -> None:
    """One timer for all of them, each at its own time; one that is cancelled is not counted."""
    async with Scripted({b"PING": b"+PONG\r\n"}).listening() as url, Heard(url).running() as heard:
        for topic in ("task:a", "task:b"):
            heard.bus.subscribe(topic)
        began = time.monotonic()
        waits = [
            asyncio.create_task(heard.bus.subscribed(topic, seconds))
            for topic, seconds in [("task:a", 0.3), ("task:b", 0.1), ("task:a", 0.1), ("task:a", 5)]
        ]
        await asyncio.wait(waits[1:3])
        assert 0.1 <= time.monotonic() - began < 0.25
        waits[3].cancel()
        await waits[0]
        assert 0.3 <= time.monotonic() - began < 2
        assert heard.bus._confirmations._timer is None, "nobody waits any more"
        assert heard.metrics.registry.get_sample_value("taskbeam_bus_confirmations_late_total") == 3


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b":1\r\n", None),
        (b"-ERR no\r\n", ResponseError),
        (b"?\r\n", InvalidResponse),
        (b"+OK\r\n", TimeoutError),
        (b"", TimeoutError),
    ],
)
async def test_the_publisher_counts_the_answers(answer: bytes, error: type[Exception] | None) -> None:
    """Two a change, each a number; anything else fails the batch, and the next one goes over a new link."""
    server = Scripted({b"PUBLISH": answer})
    async with server.listening() as url:
        out = Channels(url, "")
        for number in (1, 2):
            if error is None:
                await send(out, change("a", number))
                assert server.connections == 1
            else:
                with pytest.raises(error):
                    async with asyncio.timeout(0.2):
                        await out.send([change("a", number)])
                assert server.connections == number
        await out.close()
