"""The bus and the publisher over a real Redis: every way to reach one, and what happens when it goes."""

import asyncio
import contextlib
import dataclasses
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import msgspec
import pytest
import redis
import structlog
import uvloop

from server.embedded.redis import EmbeddedRedis
from server.metrics import Metrics
from server.push import bus, hub
from server.push.bus import RedisBus
from server.push.publisher import Channels
from server.push.redis_link import UNAVAILABLE, open_link
from server.tasks.snapshot import TaskChange
from server.tasks.state import State
from tests.push.world import change_of
from tests.redis_servers import alone, certificate, free_port, redis_process, tls_before


@dataclasses.dataclass
class Own:
    """A Redis with passwords, on a port and a socket."""

    port: int
    socket: str
    process: "subprocess.Popen[bytes]"


@pytest.fixture(scope="module")
def own(folder: Path) -> Iterator[Own]:
    place = folder / "redis-of-the-bus"
    place.mkdir()
    port, socket = free_port(), str(place / "s")
    alice = ["--user", "alice", "on", ">hunter2", "allchannels", "+@all", "~*"]
    narrow = ["--user", "narrow", "on", ">hunter2", "resetchannels", "&task:a", "+@all"]
    with redis_process(
        port, *alone(port, place), "--unixsocket", socket, "--requirepass", "hunter2", *alice, *narrow
    ) as process:
        yield Own(port, socket, process)


def change(task_id: str, version: int = 1) -> TaskChange:
    return change_of(task_id, State(version=version, status_version=version), version)


class Heard:
    """What a bus delivers, once it runs."""

    def __init__(self, url: str, prefix: str = "") -> None:
        self.metrics = Metrics()
        self.bus = RedisBus(url, prefix, self.metrics)
        self.items: list[tuple[str, hub.Item]] = []
        self.times_connected = 0
        self._more = asyncio.Event()

    def deliver(self, topic: str, items: list[hub.Item]) -> None:
        self.items += [(topic, item) for item in items]
        self._more.set()

    def connected(self) -> None:
        self.times_connected += 1
        self._more.set()

    async def until(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                self._more.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._more.wait(), 0.05)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Heard"]:
        task = asyncio.create_task(self.bus.run(self.deliver, self.connected))
        try:
            await self.until(lambda: self.bus.connected or task.done())
            if task.done():
                task.result()
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def there_and_back(url: str) -> None:
    """Through the publisher to the bus, in a turn of the loop each."""
    out = Channels(url, "p:")
    async with Heard(url, "p:").running() as heard:
        for topic in ("task:a", "task:b"):
            heard.bus.subscribe(topic)
        await asyncio.gather(*(heard.bus.subscribed(topic, 5) for topic in ("task:a", "task:b")))
        await out.send([change("a"), change("b"), change("c")])
        await out.send([change("a", 2)])
        await heard.until(lambda: len(heard.items) == 3)
        assert [(topic, item.position) for topic, item in heard.items] == [("task:a", 1), ("task:b", 1), ("task:a", 2)]
        assert heard.metrics.registry.get_sample_value("taskbeam_bus_received_total") == 3
        assert heard.metrics.registry.get_sample_value("taskbeam_bus_confirmations_late_total") == 0
    await out.close()


RUN = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


@RUN
@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@127.0.0.1:{port}",
        "redis://:hunter2@127.0.0.1:{port}/3?protocol=2&client_name=taskbeam",
        "redis://alice:hunter2@localhost:{port}?protocol=3&health_check_interval=1&client_name=taskbeam",
        "redis://127.0.0.1:{port}?username=alice&password=hunter2&decode_responses=true&encoding=latin-1&db=1",
        "redis://alice:hunter2@127.0.0.1:{port}?socket_timeout=0.5&retry_on_timeout=true&max_connections=1"
        "&socket_keepalive=false&legacy_responses=false&socket_read_size=8",
        "unix://alice:hunter2@{socket}?db=2&protocol=2&health_check_interval=1",
        "unix://{socket}?password=hunter2",
    ],
)
def test_every_url_that_redis_py_takes(run: Callable[..., None], own: Own, url: str) -> None:
    run(there_and_back(url.format(port=own.port, socket=quote(own.socket))))


@RUN
def test_without_a_password(run: Callable[..., None], redis_server: EmbeddedRedis) -> None:
    run(there_and_back(redis_server.url()))


@RUN
@pytest.mark.parametrize("options", ["ssl_ca_certs={pem}", "ssl_cert_reqs=none&protocol=2"])
def test_with_tls(run: Callable[..., None], own: Own, tmp_path: Path, options: str) -> None:
    pem, private = certificate(tmp_path)

    async def refused(url: str) -> None:
        with pytest.raises(UNAVAILABLE, match="certificate"):
            await open_link(url, lambda replies: None)

    with tls_before(own.port, pem, private) as port:
        url = f"rediss://alice:hunter2@127.0.0.1:{port}"
        run(there_and_back(f"{url}?{options.format(pem=pem)}"))
        run(refused(url))


async def test_a_wrong_password_and_a_right_that_is_missing_are_told(own: Own) -> None:
    login, right = ("alice:wrong", "task:a", "AuthenticationError"), ("narrow:hunter2", "task:b", "NoPermissionError")
    for user, topic, reason in (login, right):
        url = f"redis://{user}@127.0.0.1:{own.port}"
        heard = Heard(url)
        heard.bus.subscribe(topic)
        with structlog.testing.capture_logs() as logs, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await heard.bus.run(heard.deliver, heard.connected)
        assert reason in {line.get("reason") for line in logs}
        assert "hunter2" not in str(logs)
        with pytest.raises(UNAVAILABLE):
            await Channels(url, "").send([change("b")])


async def test_subscriptions_of_one_turn_and_what_becomes_of_them(own: Own) -> None:
    url = f"redis://alice:hunter2@127.0.0.1:{own.port}"
    topics = [f"task:{number}" for number in range(2500)]
    with redis.Redis.from_url(url) as client:
        async with Heard(url, "many:").running() as heard:
            for topic in topics:
                heard.bus.subscribe(topic)
            await asyncio.gather(*(heard.bus.subscribed(topic, 5) for topic in topics))
            channels = [f"many:{topic}" for topic in topics]
            assert dict(client.pubsub_numsub(*channels)) == {channel.encode(): 1 for channel in channels}
            for topic in topics:
                heard.bus.unsubscribe(topic)
            heard.bus.subscribe("task:7")
            for _ in range(3):
                await asyncio.sleep(0)
                heard.bus.unsubscribe("task:7")
                await asyncio.sleep(0)
                heard.bus.subscribe("task:7")
            await heard.bus.subscribed("task:7", 5)
            assert client.publish("many:task:7", change("7").body) == 1
            await heard.until(lambda: len(heard.items) == 1)
            assert set(client.pubsub_channels("many:*")) == {b"many:task:7"}
            assert heard.metrics.registry.get_sample_value("taskbeam_bus_confirmations_late_total") == 0


async def test_what_is_not_ours_is_refused_and_told(own: Own) -> None:
    url = f"redis://alice:hunter2@127.0.0.1:{own.port}"
    with redis.Redis.from_url(url) as client:
        async with Heard(url).running() as heard:
            heard.bus.subscribe("task:a")
            await heard.bus.subscribed("task:a", 5)
            with structlog.testing.capture_logs() as logs:
                for data in (b"", b"{}", change("b").body, change("a").body):
                    client.publish("task:a", data)
                await heard.until(lambda: len(heard.items) == 1)
            assert [line["event"] for line in logs] == ["bus_message_refused"] * 3
            assert {line["task_id"] for line in logs} == {"a"}
            assert heard.times_connected == 1


async def test_a_redis_that_says_nothing_any_more_is_left(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-open connection: nothing is closed, and nothing comes."""
    monkeypatch.setattr(bus, "PING_SECONDS", 0.1)
    url = f"redis://alice:hunter2@127.0.0.1:{own.port}"
    out = Channels(url, "")
    async with Heard(url).running() as heard:
        heard.bus.subscribe("task:a")
        await heard.bus.subscribed("task:a", 5)
        await out.send([change("a")])
        with structlog.testing.capture_logs() as logs:
            own.process.send_signal(signal.SIGSTOP)
            try:
                stopped = time.monotonic()
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await out.send([change("a", 2)])
                await heard.until(lambda: not heard.bus.connected)
                assert 0.25 < time.monotonic() - stopped < 2
                began = time.monotonic()
                await heard.bus.subscribed("task:z", 5)
                assert time.monotonic() - began < 1, "nobody waits for a Redis that is away"
            finally:
                own.process.send_signal(signal.SIGCONT)
            heard.bus.subscribe("task:b")
            await heard.until(lambda: heard.bus.connected)
        await asyncio.gather(*(heard.bus.subscribed(topic, 5) for topic in ("task:a", "task:b")))
        await out.send([change("a", 3), change("b", 4)])
        await heard.until(lambda: {item.position for _, item in heard.items} >= {3, 4})
        assert [(line["event"], line.get("reason")) for line in logs if line["event"].startswith("redis")] == [
            ("redis_away", "TimeoutError"),
            ("redis_connected", None),
        ]
        assert heard.times_connected == 2
    await out.close()


async def test_when_redis_ends_every_connection_all_comes_back(own: Own) -> None:
    url = f"redis://alice:hunter2@127.0.0.1:{own.port}"
    out = Channels(url, "")
    with redis.Redis.from_url(url) as client:
        async with Heard(url).running() as heard:
            for number in range(20):
                heard.bus.subscribe(f"task:{number}")
                if number % 5 == 4:
                    client.client_kill_filter(_type="pubsub")
                    client.client_kill_filter(_type="normal", skipme=True)
                await asyncio.sleep(0.005)
            await heard.until(lambda: heard.bus.connected)
            await asyncio.gather(*(heard.bus.subscribed(f"task:{number}", 5) for number in range(20)))
            await out.send([change(str(number)) for number in range(20)])
            await heard.until(lambda: len(heard.items) == 20)
            client.client_kill_filter(_type="normal", skipme=True)
            await asyncio.sleep(0.05)
            await out.send([change("7", 2)])  # it has seen that the link is lost
            await heard.until(lambda: len(heard.items) == 21)
    await out.close()


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


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({b"PING": b"+PONG\r\n", b"SUBSCRIBE": b"HTTP/1.1 400\r\n"}, "InvalidResponse"),
        ({b"PING": b"+PONG\r\n", b"SUBSCRIBE": b"-NOPERM no\r\n"}, "NoPermissionError"),
        ({b"PING": b"+PONG\r\n", b"SUBSCRIBE": b"$5000000\r\n" + b"a" * 4_000_000}, "InvalidResponse"),
        ({b"HELLO": b"-ERR unknown command\r\n"}, "ResponseError"),
        ({b"CLIENT": b"+OK\r\n" + PUSHED}, "ConnectionError"),
    ],
)
async def test_a_server_that_speaks_otherwise_is_left_and_tried_again(answers: dict[bytes, bytes], reason: str) -> None:
    server = Scripted(answers)
    async with server.listening() as url:
        heard = Heard(url)
        heard.bus.subscribe("task:a")
        with structlog.testing.capture_logs() as logs:
            run = asyncio.create_task(heard.bus.run(heard.deliver, heard.connected))
            await heard.until(lambda: server.connections >= 2)
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
        assert (logs[-1]["event"], logs[-1]["reason"]) == ("redis_away", reason)


async def test_what_nobody_asked_for_is_passed_over() -> None:
    body = change("a").body
    message = b">3\r\n$7\r\nmessage\r\n$6\r\ntask:a\r\n$%d\r\n%b\r\n" % (len(body), body)
    strange = b"*3\r\n$7\r\nmessage\r\n*0\r\n:1\r\n*0\r\n:5\r\n$-1\r\n" + PUSHED
    confirmed = b">3\r\n$9\r\nsubscribe\r\n$6\r\ntask:a\r\n:1\r\n"
    answers = {b"PING": b"+PONG\r\n" + strange, b"SUBSCRIBE": PUSHED + confirmed + confirmed + message}
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
        assert heard.metrics.registry.get_sample_value("taskbeam_bus_confirmations_late_total") == 3


@pytest.mark.parametrize("answer", [b"-ERR no\r\n", b"+OK\r\n", b"", b"?\r\n", b":1\r\n"])
async def test_the_publisher_counts_the_answers(answer: bytes) -> None:
    """Two a change, each a number; anything else fails the batch, and the next one goes over a new link."""
    server = Scripted({b"PUBLISH": answer})
    async with server.listening() as url:
        out = Channels(url, "")
        for number in (1, 2):
            if answer == b":1\r\n":
                await out.send([change("a", number)])
                assert server.connections == 1
            else:
                with pytest.raises(UNAVAILABLE):
                    async with asyncio.timeout(0.1):
                        await out.send([change("a", number)])
                assert server.connections == number
        await out.close()


def test_a_snapshot_is_far_below_what_is_refused() -> None:
    longest = msgspec.json.encode("\0" * 32_000)
    assert 4 * len(longest) < 1 << 20
