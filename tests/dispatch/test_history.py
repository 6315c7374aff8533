"""What our dispatcher tells of its messages when it is asked with the published SDK: dead letters and states."""

import base64
import time
from typing import Any

import httpx
import pytest
from qstash import AsyncQStash
from qstash.errors import QStashError
from qstash.log import LogState

from server.dispatch.history import PAGE_BYTES_MAX
from tests.deployment import TOKEN
from tests.dispatch.conftest import Connection, Home, publish, row_of
from tests.receiver import Receiver, Reply, until


async def states(qstash: AsyncQStash, message_id: str) -> list[LogState]:
    return [entry.state for entry in (await qstash.log.list(filter={"message_id": message_id})).logs]


async def ended(messages: Connection, message_id: str) -> dict[str, Any]:
    async def finished() -> dict[str, Any] | None:
        row = await row_of(messages, message_id)
        return row if row["finished_at"] else None

    row: dict[str, Any] = await until(finished, "the message ends")
    return row


async def test_a_dead_letter(qstash: AsyncQStash, receiver: Receiver, messages: Connection) -> None:
    url = receiver.on("/dead?a=1&b=", Reply(418, "kännchen".encode(), {"X-Pot": "tea"}))
    receiver.on("/dead", Reply(418, "kännchen".encode(), {"X-Pot": "tea"}))
    before = int(time.time() * 1000) - 1
    message_id = await publish(qstash, url=url, body="leaves", retries=0)
    other = await publish(qstash, url=receiver.on("/dead2", Reply(500, b"\xff\0")), retries=0)
    for one in (message_id, other):
        await ended(messages, one)
    (letter,) = (await qstash.dlq.list(filter={"message_id": message_id})).messages
    assert (letter.message_id, letter.url, letter.body, letter.response_status) == (message_id, url, "leaves", 418)
    assert (letter.response_body, letter.response_headers and letter.response_headers["X-Pot"]) == ("kännchen", ["tea"])
    assert (await qstash.dlq.list(filter={"url": url})).messages == [letter]
    assert await qstash.dlq.get(letter.dlq_id) == letter
    (binary,) = (await qstash.dlq.list(filter={"message_id": other})).messages
    assert (binary.response_body, binary.response_body_base64) == (None, base64.b64encode(b"\xff\0").decode())

    log = (await qstash.log.list(filter={"message_id": message_id})).logs
    assert [entry.state for entry in log] == [LogState.FAILED, LogState.CREATED]
    assert before <= log[1].time <= log[0].time <= int(time.time() * 1000) + 1

    first = await qstash.dlq.list(count=1)
    assert [one.message_id for one in first.messages] == [other]
    assert first.cursor
    second = await qstash.dlq.list(count=1, cursor=first.cursor)
    assert [one.message_id for one in second.messages] == [message_id]
    assert (await qstash.dlq.list(filter={"message_id": "msg_nobody"})).messages == []
    with pytest.raises(QStashError, match="404"):
        await qstash.dlq.get("1-1")


async def test_a_page_of_large_ones_is_short(qstash: AsyncQStash, receiver: Receiver, messages: Connection) -> None:
    url = receiver.on("/large", Reply(500))
    ids = [await publish(qstash, url=url, retries=0) for _ in range(3)]
    for message_id in ids:
        await ended(messages, message_id)
    await messages.execute(
        "update dispatcher.messages set response_body = decode(repeat('ab', $2), 'hex') where url = $1",
        url,
        PAGE_BYTES_MAX // 2,
    )
    seen, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        page = await qstash.dlq.list(filter={"url": url}, cursor=cursor)
        seen += [letter.message_id for letter in page.messages]
        cursor, pages = page.cursor, pages + 1
    assert (sorted(seen), pages) == (sorted(ids), 2)
    await messages.execute("update dispatcher.messages set response_body = response_body || 'x' where url = $1", url)
    assert len((await qstash.dlq.list(filter={"url": url})).messages) == 1


async def test_the_states_of_a_message(qstash: AsyncQStash, receiver: Receiver, messages: Connection) -> None:
    url = receiver.on("/states", Reply())
    delayed = await publish(qstash, url=url, delay="1h")
    assert await states(qstash, delayed) == [LogState.CREATED]
    await qstash.message.cancel(delayed)
    assert await states(qstash, delayed) == [LogState.CANCELED, LogState.CREATED]
    delivered = await publish(qstash, url=url)
    await ended(messages, delivered)
    assert await states(qstash, delivered) == [LogState.DELIVERED, LogState.CREATED]
    retried = await publish(qstash, url=receiver.on("/states2", Reply(500)), retry_delay="3600000")

    async def failed_once() -> bool:
        return bool((await row_of(messages, retried))["state"] == "retry")

    await until(failed_once, "the first delivery fails")
    log = (await qstash.log.list(filter={"message_id": retried})).logs
    assert [entry.state for entry in log] == [LogState.RETRY, LogState.CREATED]
    assert (log[0].next_delivery_time or 0) > time.time() * 1000 + 3_500_000
    assert await states(qstash, "msg_nobody") == []


async def get(home: Home, path: str, token: str = TOKEN) -> httpx.Response:
    async with httpx.AsyncClient(base_url=home.deployment.dispatcher.url, trust_env=False) as client:
        return await client.get(path, headers={"Authorization": f"Bearer {token}"})


async def test_what_is_refused(home: Home) -> None:
    assert (await get(home, "/v2/dlq", token="other")).status_code == 401
    assert (await get(home, "/v2/events?messageId=a", token="other")).status_code == 401
    for path in (
        "/v2/dlq?label=x",
        "/v2/dlq?count=0",
        "/v2/dlq?count=101",
        "/v2/dlq?count=x",
        "/v2/events",
        "/v2/events?messageId=a&state=ACTIVE",
    ):
        assert (await get(home, path)).status_code == 400, path
    for path in ("/v2/dlq?url=%00", "/v2/dlq?cursor=none", "/v2/dlq?messageId=%00"):
        assert (await get(home, path)).json() == {"messages": []}, path
    assert (await get(home, "/v2/dlq/%00")).status_code == 404
    assert (await get(home, "/v2/events?messageId=%00")).json() == {"events": []}
    assert (await get(home, "/v2/logs?messageId=a")).json() == {"logs": []}
