"""Destinations on our own network: refused by the dispatcher's process before any packet goes out to them.

A name that points elsewhere the second time it is looked up (DNS rebinding) is tried on the sender itself, since
the resolver has to lie for it.
"""

import asyncio
import base64
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from qstash import AsyncQStash

from server.dispatch import destination
from server.dispatch.delivery import Answer, Parcel, Sender
from server.dispatch.destination import Forbidden, route_to
from tests.deployment import CURRENT_KEY, listen
from tests.dispatch.conftest import Connection, Home, publish, row_of
from tests.receiver import Receiver, Reply, until

LOOPBACK = [
    "127.0.0.1",
    "127.0.0.2",
    "localhost",
    "127.1",
    "0x7f.1",
    "0177.0.0.1",
    "2130706433",
    "017700000001",
    "0.0.0.0",  # noqa: S104
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
]
PRIVATE = [
    "169.254.169.254",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "100.64.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "[fd00::1]",
]


@pytest.fixture
async def trap() -> AsyncIterator[Receiver]:
    """A server on loopback that nobody has listed."""
    async with Receiver() as trap:
        yield trap
    trap.listener.close()


async def test_nothing_of_ours_is_dialled(
    qstash: AsyncQStash, receiver: Receiver, trap: Receiver, messages: Connection
) -> None:
    port = trap.listener.getsockname()[1]
    hosts = [*(f"{host}:{port}" for host in LOOPBACK), *PRIVATE]
    failed = receiver.on("/failed", Reply())
    ids = [await publish(qstash, url=f"http://{host}/x", failure_callback=failed, timeout="5s") for host in hosts]
    failures = await receiver.wait("/failed", len(hosts))
    for message_id, host in zip(ids, hosts, strict=True):
        row = await row_of(messages, message_id)
        assert (row["state"], row["deliveries"], row["response_status"]) == ("failed", 1, 489), host
    assert {failure.json()["url"] for failure in failures} == {f"http://{host}/x" for host in hosts}
    assert b"not a public address" in base64.b64decode(failures[0].json()["body"])
    assert trap.connections == 0


async def test_a_listed_origin_is_scheme_host_and_port(
    qstash: AsyncQStash, receiver: Receiver, trap: Receiver, home: Home, messages: Connection
) -> None:
    listed = receiver.origin.removeprefix("http://")
    port = trap.listener.getsockname()[1]
    ids = [
        await publish(qstash, url=url)
        for url in (
            f"http://127.0.0.1:{port}/?{receiver.origin}/",
            f"https://{listed}/",
            f"http://{listed.replace('127.0.0.1', 'localhost')}/",
        )
    ]

    async def all_failed() -> bool:
        return all([(await row_of(messages, message_id))["state"] == "failed" for message_id in ids])

    await until(all_failed, "all are refused")
    assert (trap.connections, receiver.connections) == (0, 0)


async def test_callbacks_are_held_to_it_too(
    qstash: AsyncQStash, receiver: Receiver, trap: Receiver, messages: Connection
) -> None:
    url = receiver.on("/job", Reply())
    message_id = await publish(qstash, url=url, callback=trap.origin + "/callback")

    async def refused() -> bool:
        row = await messages.fetchrow(
            "select state::text, response_status from dispatcher.messages where source_id = $1", message_id
        )
        return row is not None and tuple(row) == ("failed", 489)

    await until(refused, "the callback is refused")
    assert trap.connections == 0


def answers(*addresses: str) -> list[tuple[Any, ...]]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in addresses]


@pytest.mark.parametrize(
    "found", [("93.184.215.14", "127.0.0.1"), ("10.0.0.1", "93.184.215.14"), ("169.254.169.254",), ()]
)
async def test_one_private_answer_is_enough(found: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        return answers(*found)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    with pytest.raises(Forbidden):
        await route_to("https://name.test/", ())


async def test_the_address_that_was_checked_is_the_one_that_is_dialled(
    trap: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name leads to a harmless address first, to the trap ever after."""
    loop = asyncio.get_running_loop()
    port = trap.listener.getsockname()[1]
    real = loop.getaddrinfo
    looked_up = []

    async def resolve(host: Any, *rest: Any, **options: Any) -> Any:
        if host not in ("rebind.test", b"rebind.test"):
            return await real(host, *rest, **options)
        looked_up.append(host)
        return answers("127.0.0.3" if len(looked_up) == 1 else "127.0.0.1")

    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    monkeypatch.setattr(destination, "is_public", lambda address: address == "127.0.0.3")
    harmless = listen("127.0.0.3", port)
    async with Receiver(harmless) as reached:
        reached.on("/x", Reply(200, b"here"))
        sender = Sender(CURRENT_KEY, ())
        parcel = Parcel("msg_1", f"http://rebind.test:{port}/x", "POST", {}, b"", 5.0, 0, "")
        assert (await sender.send(parcel)).body == b"here"
        refused: Answer = await sender.send(parcel)
        await sender.close()
    harmless.close()
    assert refused.refused
    assert trap.connections == 0
    assert reached.seen[0].headers["host"] == f"rebind.test:{port}"
    assert len(looked_up) == 2
