"""What our dispatcher does with a message, against a real receiver: callbacks, retries, pauses, bounds, refusals."""

import asyncio
import base64
import time
from email.utils import formatdate
from typing import Any

import pytest
from qstash import AsyncQStash
from qstash import Receiver as Verifier

from tests.deployment import CURRENT_KEY, NEXT_KEY
from tests.dispatch.conftest import Connection, Home, publish, row_of
from tests.receiver import Receiver, Reply, Request, until

NO_USE = {"Upstash-NonRetryable-Error": "true"}


async def ended(messages: Connection, message_id: str) -> dict[str, Any]:
    """The message's row, once it has reached a final state."""

    async def row() -> dict[str, Any] | None:
        found = await row_of(messages, message_id)
        return found if found["finished_at"] else None

    found: dict[str, Any] = await until(row, "the message ends")
    return found


async def waiting(messages: Connection, message_id: str, deliveries: int = 1) -> float:
    """Seconds from the delivery that failed to the next one that is due."""

    async def row() -> dict[str, Any] | None:
        found = await row_of(messages, message_id)
        return found if found["state"] == "retry" and found["deliveries"] == deliveries else None

    await until(row, "a retry is due")
    seconds: float = await messages.fetchval(
        "select extract(epoch from due_at - clock_timestamp())::float8 from dispatcher.messages where id = $1",
        message_id,
    )
    return seconds


async def test_a_callback_follows_every_attempt(qstash: AsyncQStash, receiver: Receiver, messages: Connection) -> None:
    url = receiver.script(
        "/job", Reply(500, b"not yet", {"X-Why": "busy"}), Reply(200, b"\xffdone", {"Content-Type": "image/png"})
    )
    callback = receiver.on("/job-callback", Reply())
    message_id = await publish(
        qstash,
        url=url,
        body="the job",
        content_type="text/plain",
        headers={"X-Mine": "v"},
        method="PUT",
        retries=4,
        retry_delay="50",
        callback=callback,
        failure_callback=receiver.on("/job-failed", Reply()),
    )
    sent = await receiver.wait("/job", 2)
    assert [request.retried for request in sent] == [0, 1]
    assert len({request.headers["upstash-signature"] for request in sent}) == 2
    calls = sorted(await receiver.wait("/job-callback", 2), key=lambda r: r.json()["retried"])
    row = await row_of(messages, message_id)
    created_at = int(row["created_at"].timestamp() * 1000)
    always = {
        "maxRetries": 4,
        "sourceMessageId": message_id,
        "url": url,
        "method": "PUT",
        "sourceHeader": {"Content-Type": ["text/plain"], "X-Mine": ["v"]},
        "sourceBody": base64.b64encode(b"the job").decode(),
        "notBefore": created_at,
        "createdAt": created_at,
        "callerIP": "127.0.0.1",
    }
    for call, status, answer, retried, header in (
        (calls[0], 500, b"not yet", 0, ("X-Why", "busy")),
        (calls[1], 200, b"\xffdone", 1, ("Content-Type", "image/png")),
    ):
        body = call.json()
        assert body.pop("header")[header[0]] == [header[1]]
        assert abs(body["createdAt"] - created_at) <= 1
        assert {**body, "createdAt": created_at, "notBefore": created_at} == {
            **always, "status": status, "body": base64.b64encode(answer).decode(), "retried": retried
        }  # fmt: skip
        assert call.headers["content-type"] == "application/json"
        assert call.headers["upstash-message-id"] != message_id
        signature = call.headers["upstash-signature"]
        Verifier(CURRENT_KEY, NEXT_KEY).verify(signature=signature, body=call.body.decode(), url=callback)
    assert (row["state"], row["deliveries"], row["dlq_id"]) == ("delivered", 2, None)
    assert not receiver.at("/job-failed")


async def test_the_failure_callback_comes_once_when_retries_are_used_up(
    qstash: AsyncQStash, receiver: Receiver, messages: Connection
) -> None:
    message_id = await publish(
        qstash,
        url=receiver.on("/broken", Reply(503, b"down")),
        retries=2,
        retry_delay="10",
        callback=receiver.on("/broken-callback", Reply()),
        failure_callback=receiver.on("/broken-failed", Reply()),
        callback_headers={"Method": "PUT", "Forward-X-Which": "each"},
        failure_callback_headers={"Forward-X-Which": "last"},
    )
    row = await ended(messages, message_id)
    assert (row["state"], row["deliveries"], row["response_status"], row["response_body"]) == (
        "failed",
        3,
        503,
        b"down",
    )
    (failure,) = await receiver.wait("/broken-failed")
    calls = await receiver.wait("/broken-callback", 3)
    assert sorted(call.json()["retried"] for call in calls) == [0, 1, 2]
    assert not any("dlqId" in call.json() for call in calls)
    assert {(call.method, call.headers["x-which"]) for call in calls} == {("PUT", "each")}
    assert failure.json() == {**failure.json(), "retried": 2, "maxRetries": 2, "status": 503, "dlqId": row["dlq_id"]}
    assert (failure.method, failure.headers["x-which"]) == ("POST", "last")
    assert row["dlq_id"].partition("-")[0] == str(failure.json()["createdAt"])
    assert len(await all_of(messages, message_id)) == 4


async def all_of(messages: Connection, message_id: str) -> list[Any]:
    """The callbacks that were written for a message."""
    return await messages.fetch("select * from dispatcher.messages where source_id = $1", message_id)


async def test_callbacks_are_retried_but_have_none_of_their_own(
    qstash: AsyncQStash, receiver: Receiver, messages: Connection
) -> None:
    callback = receiver.script("/shy", Reply(500), Reply(500), Reply(200))
    message_id = await publish(
        qstash,
        url=receiver.on("/shy-job", Reply()),
        callback=callback,
        failure_callback=callback,
        retries=0,
        callback_headers={"Retries": "5", "Retry-Delay": "10"},
    )
    calls = await receiver.wait("/shy", 3)
    assert [call.retried for call in calls] == [0, 1, 2]
    assert len({call.headers["upstash-message-id"] for call in calls}) == 1
    (row,) = await all_of(messages, message_id)
    assert (await ended(messages, row["id"]))["state"] == "delivered"
    assert not await all_of(messages, row["id"])


async def test_the_pause_is_the_sender_s_expression(qstash: AsyncQStash, receiver: Receiver) -> None:
    url = receiver.script("/paced", Reply(500), Reply(500), Reply(200))
    await publish(qstash, url=url, retry_delay="300 * (1 + retried)")
    times = [request.at for request in await receiver.wait("/paced", 3)]
    assert 0.3 <= times[1] - times[0] < 0.6 <= times[2] - times[1] < 1.2


async def test_without_one_it_is_the_protocol_s(qstash: AsyncQStash, receiver: Receiver, messages: Connection) -> None:
    message_id = await publish(qstash, url=receiver.on("/default", Reply(500)))
    assert 10 < await waiting(messages, message_id) <= 12.19  # e^2.5
    await messages.execute("update dispatcher.messages set due_at = now() where id = $1", message_id)
    assert 146 < await waiting(messages, message_id, deliveries=2) <= 148.42  # e^5


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ({"Retry-After": "7"}, 5, 7),
        ({"Retry-After": "in 40 s"}, 36, 40),
        ({"X-RateLimit-Reset-Requests": "6m5s"}, 363, 365),
        ({"Retry-After": "9999999"}, 86_390, 86_400),
        ({"Retry-After": "soon"}, 0.5, 3),
    ],
)
async def test_the_receiver_s_wish_beats_both(
    qstash: AsyncQStash, receiver: Receiver, messages: Connection, header: dict[str, str], low: float, high: float
) -> None:
    if header.get("Retry-After") == "in 40 s":
        header = {"Retry-After": formatdate(time.time() + 40, usegmt=True)}
    message_id = await publish(qstash, url=receiver.on("/wish", Reply(429, b"", header)), retry_delay="3000")
    assert low <= await waiting(messages, message_id) <= high


async def test_what_is_not_worth_a_retry(qstash: AsyncQStash, receiver: Receiver, messages: Connection) -> None:
    failed = receiver.on("/refused-failed", Reply())
    refused = await publish(qstash, url=receiver.on("/refused", Reply(489, b"no", NO_USE)), failure_callback=failed)
    assert (await ended(messages, refused))["state"] == "failed"
    (failure,) = await receiver.wait("/refused-failed")
    assert (failure.json()["status"], failure.json()["retried"], failure.json()["maxRetries"]) == (489, 0, 3)
    # The header alone, or the status alone, says nothing.
    url = receiver.script("/unclear", Reply(489), Reply(500, b"", NO_USE), Reply(200))
    unclear = await publish(qstash, url=url, retry_delay="10")
    assert (await ended(messages, unclear))["deliveries"] == 3
    assert len(receiver.at("/refused")) == 1


async def test_redirects_are_failures(qstash: AsyncQStash, receiver: Receiver, messages: Connection) -> None:
    target = receiver.on("/elsewhere", Reply())
    url = receiver.on("/moved", Reply(307, b"", {"Location": target}))
    message_id = await publish(qstash, url=url, retries=1, retry_delay="10")
    row = await ended(messages, message_id)
    assert (row["state"], row["deliveries"], row["response_status"]) == ("failed", 2, 307)
    assert (len(receiver.at("/moved")), len(receiver.at("/elsewhere"))) == (2, 0)


async def test_a_delivery_has_its_time(qstash: AsyncQStash, receiver: Receiver) -> None:
    never = asyncio.Event()

    async def silent(_: Request) -> Reply:
        await never.wait()
        return Reply()

    callback = receiver.on("/silent-callback", Reply())
    began = time.monotonic()
    await publish(qstash, url=receiver.on("/silent", silent), retries=0, timeout="0.4s", callback=callback)
    (call,) = await receiver.wait("/silent-callback")
    assert 0.4 <= call.at - began < 3
    assert (call.json()["status"], call.json()["retried"]) == (504, 0)
    never.set()


async def test_nobody_there(qstash: AsyncQStash, receiver: Receiver) -> None:
    """Port 9 is listed (it is the callback base of this deployment), and nothing listens on it."""
    callback = receiver.on("/nobody-callback", Reply())
    await publish(qstash, url="http://127.0.0.1:9/", retries=1, retry_delay="10", callback=callback)
    calls = await receiver.wait("/nobody-callback", 2)
    assert sorted((call.json()["status"], call.json()["retried"]) for call in calls) == [(0, 0), (0, 1)]
    assert b"ConnectError" in base64.b64decode(calls[0].json()["body"])


async def test_a_delay_is_kept(qstash: AsyncQStash, receiver: Receiver) -> None:
    began = time.monotonic()
    await publish(qstash, url=receiver.on("/delayed", Reply()), delay="1s")
    (delivery,) = await receiver.wait("/delayed")
    assert 1 <= delivery.at - began < 3


async def test_never_more_at_once_than_allowed(qstash: AsyncQStash, receiver: Receiver) -> None:
    async def slow(_: Request) -> Reply:
        await asyncio.sleep(0.3)
        return Reply()

    url = receiver.on("/slow", slow)
    await asyncio.gather(*(publish(qstash, url=url, body=str(n)) for n in range(40)))
    seen = await receiver.wait("/slow", 40)
    assert receiver.most_in_flight == 16
    assert len({request.body for request in seen}) == 40


async def test_callbacks_do_not_wait_behind_jobs(qstash: AsyncQStash, receiver: Receiver) -> None:
    """All deliveries are taken and more jobs wait: the news of the first that is done comes all the same."""
    gate, first = asyncio.Event(), asyncio.Event()

    async def job(request: Request) -> Reply:
        await (first if request.body == b"0" else gate).wait()
        return Reply()

    url, callback = receiver.on("/busy", job), receiver.on("/busy-callback", Reply())
    for n in range(30):
        await publish(qstash, url=url, body=str(n), callback=callback)
    await receiver.wait("/busy", 16)
    first.set()
    (call,) = await receiver.wait("/busy-callback", seconds=3)
    assert base64.b64decode(call.json()["sourceBody"]) == b"0"
    gate.set()
    await receiver.wait("/busy-callback", 30)


async def test_cancelled_while_it_is_delivered(qstash: AsyncQStash, receiver: Receiver, messages: Connection) -> None:
    never, given_up = asyncio.Event(), asyncio.Event()

    async def endless(_: Request) -> Reply:
        await never.wait()
        return Reply()

    callback = receiver.on("/endless-callback", Reply())
    message_id = await publish(qstash, url=receiver.on("/endless", endless), callback=callback)
    await receiver.wait("/endless")
    await qstash.message.cancel(message_id)
    never.set()
    given_up.set()
    await publish(qstash, url=receiver.on("/next", Reply()), callback=receiver.on("/next-callback", Reply()))
    await receiver.wait("/next-callback")
    assert (await row_of(messages, message_id))["state"] == "canceled"
    assert not await all_of(messages, message_id)


async def test_what_is_shown_in_which_state(qstash: AsyncQStash, receiver: Receiver, messages: Connection) -> None:
    gate = asyncio.Event()
    replies = [Reply(500), Reply(500)]

    async def handler(_: Request) -> Reply:
        await gate.wait()
        return replies.pop(0)

    url = receiver.on("/stations", handler)
    message_id = await publish(qstash, url=url, retries=1, retry_delay="600", delay="1s")
    before = await qstash.message.get(message_id)
    states = [(await row_of(messages, message_id))["state"]]
    await receiver.wait("/stations")
    states.append((await row_of(messages, message_id))["state"])
    gate.set()
    await waiting(messages, message_id)
    states.append((await row_of(messages, message_id))["state"])
    assert await qstash.message.get(message_id) == before
    states.append((await ended(messages, message_id))["state"])
    assert states == ["created", "active", "retry", "failed"]
    assert await qstash.message.get(message_id) == before
    assert before.not_before - before.created_at == 1000


async def test_postgres_cuts_the_connections(
    qstash: AsyncQStash, receiver: Receiver, messages: Connection, home: Home
) -> None:
    """In the middle of deliveries: each is recorded once, and none is made twice."""
    gate = asyncio.Event()

    async def handler(_: Request) -> Reply:
        await gate.wait()
        return Reply()

    url, callback = receiver.on("/cut", handler), receiver.on("/cut-callback", Reply())
    ids = [await publish(qstash, url=url, body=str(n), callback=callback) for n in range(10)]
    await receiver.wait("/cut", 10)
    for _ in range(3):
        await messages.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and pid <> pg_backend_pid()",
            home.deployment.database.name,
        )
        gate.set()
        await asyncio.sleep(0.05)  # so that the next cut meets new connections
    calls = await receiver.wait("/cut-callback", 10)
    for message_id in ids:
        row = await ended(messages, message_id)
        assert (row["state"], row["deliveries"]) == ("delivered", 1)
        assert len(await all_of(messages, message_id)) == 1
    assert sorted(call.json()["sourceMessageId"] for call in calls) == sorted(ids)
    assert len(receiver.at("/cut")) == 10
    # It still listens, too: what others publish is delivered at once.
    await publish(qstash, url=receiver.on("/cut-after", Reply()))
    await receiver.wait("/cut-after", seconds=3)
