"""The bus and the publisher over a real Redis: every way to reach one, and what happens when it goes."""

import asyncio
import contextlib
import dataclasses
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
import structlog
import uvloop

from server.embedded.redis import EmbeddedRedis
from server.push import bus
from server.push.publisher import Channels
from server.push.redis_link import UNAVAILABLE, Link, open_link
from tests.push.heard import Heard, change, send
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


async def there_and_back(url: str) -> None:
    """Through the publisher to the bus, in a turn of the loop each."""
    out = Channels(url, "p:")
    async with Heard(url, "p:").running() as heard:
        for topic in ("task:a", "task:b"):
            heard.bus.subscribe(topic)
        await asyncio.gather(*(heard.bus.subscribed(topic, 5) for topic in ("task:a", "task:b")))
        await send(out, change("a"), change("b"), change("c"))
        await send(out, change("a", 2))
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
            await send(Channels(url, ""), change("b"))


async def test_subscriptions_of_one_turn_and_what_becomes_of_them(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"redis://alice:hunter2@127.0.0.1:{own.port}"
    topics = [f"task:{number}" for number in range(2500)]
    with redis.Redis.from_url(url) as client:
        async with Heard(url, "many:").running() as heard:
            writes: list[bytes] = []
            write = Link.write

            def note(link: Link, data: bytes) -> None:
                writes.append(data)
                write(link, data)

            monkeypatch.setattr(Link, "write", note)
            for topic in topics:
                heard.bus.subscribe(topic)
            await asyncio.gather(*(heard.bus.subscribed(topic, 5) for topic in topics))
            assert [data.count(b"SUBSCRIBE") for data in writes if b"SUBSCRIBE" in data] == [3]
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
        await send(out, change("a"))
        with structlog.testing.capture_logs() as logs:
            own.process.send_signal(signal.SIGSTOP)
            try:
                stopped = time.monotonic()
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await send(out, change("a", 2))
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
        await send(out, change("a", 3), change("b", 4))
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
            await send(out, *[change(str(number)) for number in range(20)])
            await heard.until(lambda: len(heard.items) == 20)
            client.client_kill_filter(_type="normal", skipme=True)
            await asyncio.sleep(0.05)
            await send(out, change("7", 2))  # it has seen that the link is lost
            await heard.until(lambda: len(heard.items) == 21)
    await out.close()
