"""Several dispatcher processes on one database: what becomes of a message whose dispatcher dies, stalls or leaves."""

import asyncio
import base64
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator

import asyncpg
import pytest

from server.db import Pool
from server.dispatch.delivery import Answer
from server.dispatch.message import Draft
from server.dispatch.messages import Messages
from tests.conftest import Connection, Deploy
from tests.deployment import Deployment
from tests.dispatch.conftest import publish, row_of, sdk
from tests.receiver import Receiver, Reply, Request, until

# The lease, a turn of the reaper, and time for two busy cores.
TAKEOVER_SECONDS_MAX = 12


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver
    receiver.listener.close()


async def dispatchers(deploy: Deploy, receiver: Receiver, count: int, **env: str) -> Deployment:
    env = {"DISPATCHER_PRIVATE_ORIGINS": receiver.origin, **env}
    return await deploy(webs=0, dispatchers=count, generator=False, env=env)


async def state_of(owner: Connection, message_id: str) -> str:
    return str((await row_of(owner, message_id))["state"])


async def reaches(owner: Connection, message_id: str, state: str, seconds: float = 15) -> None:
    async def there() -> bool:
        return await state_of(owner, message_id) == state

    await until(there, f"{message_id} is {state}", seconds)


async def callbacks_of(owner: Connection, message_id: str) -> list[tuple[int, int]]:
    """(retried, status) of each callback that was written for a message."""
    rows = await owner.fetch("select body from dispatcher.messages where source_id = $1", message_id)
    bodies = [json.loads(row["body"]) for row in rows]
    return sorted((body["retried"], body["status"]) for body in bodies)


async def test_killed_in_the_middle(deploy: Deploy, receiver: Receiver, owner: Connection) -> None:
    """Five deliveries are under way when their dispatcher is killed; another makes them, within seconds."""
    here = await dispatchers(deploy, receiver, 1)
    gate = asyncio.Event()

    async def first_hangs(request: Request) -> Reply:
        if request.retried == 0:
            await gate.wait()
        return Reply()

    url, callback = receiver.on("/job", first_hangs), receiver.on("/callback", Reply())
    async with sdk(here.dispatcher.url) as client:
        ids = [await publish(client, url=url, callback=callback) for _ in range(5)]
        await receiver.wait("/job", 5)
        here.dispatcher.kill()
        killed = time.monotonic()
        await here.dispatcher.start()
        for message_id in ids:
            await reaches(owner, message_id, "delivered")
    assert time.monotonic() - killed < TAKEOVER_SECONDS_MAX
    gate.set()
    again = receiver.at("/job")[5:]
    assert Counter(request.headers["upstash-message-id"] for request in again) == Counter(ids)
    # What was lost counts as a delivery, and is told like one.
    for message_id in ids:
        assert (await row_of(owner, message_id))["deliveries"] == 2
        assert await callbacks_of(owner, message_id) == [(0, 0), (1, 200)]


async def test_a_message_that_kills_its_dispatcher(deploy: Deploy, receiver: Receiver, owner: Connection) -> None:
    """It is counted when it is claimed: after its retries it is a dead letter, not an endless loop."""
    here = await dispatchers(deploy, receiver, 1)
    url, failed = receiver.on("/poison", Reply()), receiver.on("/failed", Reply())
    async with sdk(here.dispatcher.url) as client:
        message_id = await publish(client, url=url, retries=1, delay="1h", failure_callback=failed)
        here.dispatcher.stop()
        for deliveries in (1, 2):
            await owner.execute(
                "update dispatcher.messages set due_at = now(), leased_until = null, state = 'retry' where id = $1",
                message_id,
            )
            here.dispatcher.begin(TASKBEAM_FAILPOINTS="dispatcher.claimed")
            assert here.dispatcher.wait(20) == 86
            row = await row_of(owner, message_id)
            assert (row["state"], row["deliveries"]) == ("active", deliveries)
        await here.dispatcher.start()
        await reaches(owner, message_id, "failed", TAKEOVER_SECONDS_MAX)
        (failure,) = await receiver.wait("/failed")
        assert (failure.json()["retried"], failure.json()["maxRetries"]) == (1, 1)
        assert not receiver.at("/poison")
        # Nothing is left that could kill it again.
        await publish(client, url=receiver.on("/healthy", Reply()))
        await receiver.wait("/healthy")


async def test_a_slow_holder_changes_nothing_afterwards(deploy: Deploy, receiver: Receiver, owner: Connection) -> None:
    """Stopped beyond its lease with an answer on the way; it wakes while another is at work on the message."""
    here = await dispatchers(deploy, receiver, 2)
    slow, other = here.dispatchers
    other.signal(signal.SIGSTOP)
    first, second = asyncio.Event(), asyncio.Event()

    async def job(request: Request) -> Reply:
        await (first if request.retried == 0 else second).wait()
        return Reply(200, b"first" if request.retried == 0 else b"second")

    url, callback = receiver.on("/job", job), receiver.on("/callback", Reply())
    try:
        async with sdk(slow.url) as client:
            message_id = await publish(client, url=url, callback=callback, retry_delay="10")
        await receiver.wait("/job")
        slow.signal(signal.SIGSTOP)
        first.set()
        other.signal(signal.SIGCONT)
        await receiver.wait("/job", 2, TAKEOVER_SECONDS_MAX)
        before = await row_of(owner, message_id)
    finally:
        slow.signal(signal.SIGCONT)
        other.signal(signal.SIGCONT)

    async def noticed() -> bool:
        log = slow.log.read_text()
        return '"fenced_off"' in log or '"delivery_dropped"' in log

    await until(noticed, "the slow one finds that it holds nothing any more")
    now = await row_of(owner, message_id)
    assert (now["state"], now["fence"], now["deliveries"]) == ("active", before["fence"], 2)
    second.set()
    calls = await receiver.wait("/callback", 2)
    await reaches(owner, message_id, "delivered")
    assert await callbacks_of(owner, message_id) == [(0, 0), (1, 200)]
    assert len(receiver.at("/job")) == 2
    news = {call.json()["retried"]: base64.b64decode(call.json()["body"]) for call in calls}
    assert news == {0: b"the dispatcher ended while it was delivering", 1: b"second"}


async def test_three_dispatchers_share_the_work(deploy: Deploy, receiver: Receiver, owner: Connection) -> None:
    """200 messages and no fault: each is delivered once, and all three had a part in it."""
    here = await dispatchers(deploy, receiver, 3, DISPATCHER_PARALLELISM="4")

    async def job(_: Request) -> Reply:
        await asyncio.sleep(0.02)
        return Reply()

    url = receiver.on("/job", job)
    async with sdk(here.dispatcher.url) as client:
        for start in range(0, 200, 20):
            await asyncio.gather(*(publish(client, url=url, body=str(n)) for n in range(start, start + 20)))
    seen = await receiver.wait("/job", 200, seconds=30)

    async def all_done() -> bool:
        return not await owner.fetchval("select count(*) from dispatcher.messages where state <> 'delivered'")

    await until(all_done, "all are delivered")
    assert Counter(request.body for request in seen) == Counter(str(n).encode() for n in range(200))
    assert {request.retried for request in seen} == {0}
    assert await owner.fetchval("select max(deliveries) from dispatcher.messages") == 1
    assert receiver.most_in_flight <= 12
    for server in here.dispatchers:
        assert '"outcome": "delivered"' in server.log.read_text(), "one of them did nothing"


async def test_leaving_hands_back_at_once(deploy: Deploy, receiver: Receiver, owner: Connection) -> None:
    here = await dispatchers(deploy, receiver, 2)
    leaving, staying = here.dispatchers
    staying.signal(signal.SIGSTOP)
    gate = asyncio.Event()

    async def job(_: Request) -> Reply:
        if len(receiver.at("/job")) == 1:
            await gate.wait()
        return Reply()

    async with sdk(leaving.url) as client:
        message_id = await publish(client, url=receiver.on("/job", job), callback=receiver.on("/callback", Reply()))
    await receiver.wait("/job")
    staying.signal(signal.SIGCONT)
    asked = time.monotonic()
    leaving.signal(signal.SIGTERM)
    _, again = await receiver.wait("/job", 2, seconds=5)
    assert again.at - asked < 2.5, "handed back too late"
    await asyncio.to_thread(leaving.wait, 5)
    assert time.monotonic() - asked < 5
    await reaches(owner, message_id, "delivered")
    gate.set()
    # It was nobody's fault: the delivery does not count, and nobody is told of it.
    assert again.retried == 0
    assert await callbacks_of(owner, message_id) == [(0, 200)]


async def test_leaving_lets_a_delivery_end_that_is_about_to(
    deploy: Deploy, receiver: Receiver, owner: Connection
) -> None:
    here = await dispatchers(deploy, receiver, 1)

    async def job(_: Request) -> Reply:
        here.dispatcher.signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        return Reply()

    async with sdk(here.dispatcher.url) as client:
        message_id = await publish(client, url=receiver.on("/job", job))
    await receiver.wait("/job")
    await asyncio.to_thread(here.dispatcher.wait, 5)
    assert await state_of(owner, message_id) == "delivered"


async def test_published_before_anybody_was_there(deploy: Deploy, receiver: Receiver, owner: Connection) -> None:
    """Notices are only hints: what was stored while no dispatcher listened is found by one that starts."""
    here = await dispatchers(deploy, receiver, 1)
    url = receiver.on("/job", Reply())
    async with sdk(here.dispatcher.url) as client:
        message_id = await publish(client, url=url, delay="1h")
    here.dispatcher.stop()
    await owner.execute("update dispatcher.messages set due_at = now() where id = $1", message_id)
    await here.dispatcher.start()
    await receiver.wait("/job", seconds=5)


async def test_postgres_away_for_longer_than_a_lease(deploy: Deploy, receiver: Receiver, owner: Connection) -> None:
    """Nobody could renew or record meanwhile: the holders, who live, keep what they hold, and nothing is made twice."""
    here = await dispatchers(deploy, receiver, 2)
    during, after = asyncio.Event(), asyncio.Event()

    async def job(request: Request) -> Reply:
        await (during if request.body == b"during" else after).wait()
        return Reply()

    url = receiver.on("/job", job)
    async with sdk(here.dispatcher.url) as client:
        ids = [await publish(client, url=url, body=body) for body in ["during", "after"] * 5]
    await receiver.wait("/job", 10)
    admin = await asyncpg.connect(here.database.owner_url.replace(here.database.name, "postgres"))
    name = here.database.name
    try:
        await admin.execute(f"alter database {name} allow_connections false")
        cut = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and usename = 'taskbeam'"
        await admin.execute(cut, name)
        during.set()

        async def all_ran_out() -> bool:
            return bool(await owner.fetchval("select bool_and(leased_until < now()) from dispatcher.messages"))

        await until(all_ran_out, "the leases have run out", 10)
    finally:
        await admin.execute(f"alter database {name} allow_connections true")
        await admin.close()

    async def none_ran_out() -> bool:
        return not await owner.fetchval("select count(*) from dispatcher.messages where leased_until < now()")

    await until(none_ran_out, "all are renewed or recorded", 10)
    after.set()
    for message_id in ids:
        await reaches(owner, message_id, "delivered")
    twice = await owner.fetch("select id, fence, deliveries from dispatcher.messages where deliveries <> 1")
    assert not twice, "\n".join([*map(str, twice), *(server.log.read_text() for server in here.dispatchers)])
    assert len(receiver.at("/job")) == 10


async def test_an_old_claim_changes_nothing(pool: Pool, owner: Connection) -> None:
    """Every statement of a holder carries the fence of its claim: after another's claim none of them does anything."""
    messages = Messages(pool, kept_days=1, dead_letters_kept_days=7)
    draft = Draft(url="https://example.com/", callback="https://example.com/callback")
    message_id, _ = await messages.publish(draft, "")
    (old,) = await messages.claim(1, 1)
    assert (old.id, old.deliveries) == (message_id, 1)
    assert await messages.claim(9, 9) == []
    assert await messages.expired() == []
    await owner.execute("update dispatcher.messages set leased_until = now()")
    (new,) = await messages.expired()
    assert (new.fence, new.deliveries) == (old.fence + 1, 1)
    before = await row_of(owner, message_id)
    assert before["state"] == "active"
    answer = Answer(200)
    assert not await messages.delivered(old, answer)
    assert not await messages.retry_later(old, answer, 0)
    assert not await messages.failed(old, answer)
    assert await messages.renew([old]) == set()
    await messages.hand_back([old])
    assert await row_of(owner, message_id) == before
    assert await callbacks_of(owner, message_id) == []
    # What is over is over, for its own holder too.
    assert await messages.delivered(new, answer)
    before = await row_of(owner, message_id)
    assert not await messages.delivered(new, answer)
    assert not await messages.failed(new, answer)
    await messages.hand_back([new])
    assert await row_of(owner, message_id) == before
    assert await callbacks_of(owner, message_id) == [(0, 200)]
