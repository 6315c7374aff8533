"""Of many processes one acts, a vanished message is sent again, and whatever the provider does, no task stays open."""

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from server.db import Pool
from server.settings import Settings
from server.tasks.expiry import Expiry
from server.tasks.state import OPEN, Report
from tests.conftest import Connection, Deploy
from tests.dispatch.reconciling import DONE, LONG_AGO, World, member
from tests.provider import Memory, word
from tests.receiver import Receiver, Reply, until
from tests.tasks.conftest import signed


async def test_one_of_many_processes_acts(
    world: World, pool: Pool, settings: Settings, owner: Connection, memory: Memory, api: Receiver
) -> None:
    worlds = [world, *(member(pool, settings, owner, memory, api.origin) for _ in range(3))]
    made = [await world.begin() for _ in range(40)]
    ids = [task_id for task_id, _ in made]
    await world.overdue(*ids)
    counts = await asyncio.gather(*(one.reconciler.step() for one in worlds))
    assert sum(counts) == 40
    assert Counter(
        change.task_id for one in worlds for change in one.published if change.status == "failed"
    ) == Counter(ids)
    events = await owner.fetch("select task_id, count(*) from task_events where status = 'failed' group by 1")
    assert {row["count"] for row in events} == {1}
    assert len(events) == 40
    looked = Counter(target for target in memory.asked if target.startswith("/v2/messages/"))
    assert looked == Counter(f"/v2/messages/{message_id}" for _, message_id in made)

    async def all_cancelled() -> bool:
        return len(memory.cancelled) == 40

    await until(all_cancelled, "each is cancelled", 5)
    assert Counter(memory.cancelled) == Counter(message_id for _, message_id in made)


async def test_a_process_that_dies_at_it_is_replaced(deploy: Deploy, api: Receiver, owner: Connection) -> None:
    here = await deploy(dispatchers=0, generator=False, env={"QSTASH_URL": api.origin})
    memory = Memory(api, here.env["QSTASH_TOKEN"])
    message_id = memory.add()
    api.on(f"/v2/publish/{here.env['GENERATOR_URL']}", Reply(200, b'{"messageId":"%b"}' % message_id.encode()))
    here.web.kill()
    here.web.begin(TASKBEAM_FAILPOINTS="reconciler.taken")
    await here.web.ready()
    async with here.client() as client:
        task_id = (await client.post("/api/generate", json={"prompt": "a boat"})).json()["taskId"]

    async def sent() -> Any:
        return await owner.fetchval("select message_id from taskbeam.dispatches where sent_at is not null")

    await until(sent, "it is sent")
    await owner.execute("update image_generations set deadline_at = now() - interval '1 s'")
    assert await asyncio.to_thread(here.web.wait) == 86
    row = await owner.fetchrow("select lookups, lookup_leased_until > now() from taskbeam.dispatches")
    assert row is not None
    assert tuple(row) == (1, True)
    await here.web.start()
    await owner.execute("update taskbeam.dispatches set lookup_leased_until = now()")

    async def ended() -> Any:
        return await owner.fetchval("select error_code from image_generations where task_id = $1", task_id)

    assert await until(ended, "the other process ends it") == "timeout"
    assert await owner.fetchval("select lookups from taskbeam.dispatches") == 2
    assert await owner.fetchval("select count(*) from task_events where status = 'failed'") == 1


@pytest.mark.parametrize("error", [ConnectionResetError(), ZeroDivisionError()])
async def test_what_breaks_over_one_holds_up_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Postgres away for a moment, or a defect: the loop lives, and the lease runs out."""
    one, _ = await world.begin(state="DELIVERED")
    other, _ = await world.begin()
    await world.overdue(one, other)
    again = world.reconciler._again

    async def broken(row: Any, *told: Any) -> None:
        if row["task_id"] == one:
            raise error
        await again(row, *told)

    monkeypatch.setattr(world.reconciler, "_again", broken)
    assert await world.reconciler.step() == 2
    assert [(await world.task(task_id))[0] for task_id in (one, other)] == ["pending", "failed"]
    assert (await world.dispatch(one))["held"]
    assert await world.reconciler.step() == 0


async def test_what_there_was_no_time_for_is_given_back_uncounted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id, _ = await world.begin()
    await world.overdue(task_id)
    monkeypatch.setattr("server.dispatch.reconciler.WORK_SECONDS_MAX", 61.0)
    await world.reconciler.step()
    row = await world.dispatch(task_id)
    assert (row["lookups"], row["held"]) == (0, None)
    assert world.memory.asked == []
    monkeypatch.undo()
    assert await world.reconciler.step() == 1
    assert (await world.task(task_id))[0] == "failed"


async def test_what_kills_each_process_is_ended_without_a_look(world: World, pool: Pool, owner: Connection) -> None:
    task_id, _ = await world.begin()
    await world.overdue(task_id)
    await owner.execute("update taskbeam.dispatches set lookups = 60, lookup_leased_until = now() - interval '1 s'")
    assert await world.reconciler.step() == 0
    assert await Expiry(pool, world.store.announce).expire() == 1
    assert (await world.task(task_id))[1] == "timeout"


async def test_a_rule_of_the_app_holds_up_no_other(world: World, owner: Connection) -> None:
    odd, _ = await world.begin()
    other, _ = await world.begin()
    await owner.execute(f"alter table image_generations add check (task_id <> '{odd}' or status <> 'failed')")
    await world.overdue(odd, other)
    assert await world.reconciler.step() == 2
    assert [(await world.task(task_id))[0] for task_id in (odd, other)] == ["pending", "failed"]
    assert (await world.dispatch(odd))["pause"] > 3000
    assert await world.reconciler.step() == 0


# A message that has vanished


async def test_a_message_that_has_vanished_is_sent_again(world: World, owner: Connection) -> None:
    task_id, message_id = await world.begin(state=None, gone=True)
    row = await world.dispatch(task_id)
    assert 110 < row["pause"] <= 120
    assert await world.reconciler.step() == 0
    for n in range(1, 5):
        await world.due()
        assert await world.reconciler.step() == 1
        row = await world.dispatch(task_id)
        assert (row["sent_at"], row["resends"], row["pause"]) == (None, n, None)
        deadline = await owner.fetchval("select extract(epoch from deadline_at - now())::float8 from image_generations")
        assert 86_000 < deadline <= 86_400, "its time counts anew"
        assert [taken["task_id"] for taken in await world.outbox._take(5)] == [task_id]
        await world.outbox._sent(task_id, 1, message_id)
        assert (await world.dispatch(task_id))["pause"] == pytest.approx(120 * 2**n, abs=5)
    await world.due()
    assert await world.reconciler.step() == 1
    assert (await world.task(task_id))[:2] == ("failed", "message_lost")


async def test_two_that_find_it_gone_send_it_once(world: World) -> None:
    task_id, _ = await world.begin(state=None, gone=True)
    row = {"task_id": task_id, "attempt": 1, "resends": 0}
    for _ in range(2):
        await world.reconciler._resend(row)  # type: ignore[arg-type]
    assert (await world.dispatch(task_id))["resends"] == 1


@pytest.mark.parametrize("state", ["CREATED", "RETRY", "DELIVERED", None])
async def test_a_message_in_a_long_queue_is_not_sent_again(world: World, state: str | None, owner: Connection) -> None:
    task_id, _ = await world.begin(state=state)
    for _ in range(3):
        await world.due()
        assert await world.reconciler.step() == 1
    row = await world.dispatch(task_id)
    assert (row["resends"], row["lookups"], row["sent_at"] is None) == (0, 0, False)
    assert 50 < row["pause"] <= 60
    await owner.execute("update taskbeam.dispatches set sent_at = now() - interval '2 hours'")
    await world.due()
    await world.reconciler.step()
    assert (await world.dispatch(task_id))["pause"] == pytest.approx(900, abs=5)
    assert (await world.task(task_id))[0] == "pending"


async def test_what_has_begun_is_looked_up_no_more(world: World, owner: Connection) -> None:
    task_id, _ = await world.begin()
    await world.store.report(task_id, Report(attempt=1, progress=1))
    await world.due()
    assert await world.reconciler.step() == 0
    assert await owner.fetchval("select lookup_at from taskbeam.dispatches") is None
    assert world.memory.asked == []


async def test_an_end_at_the_provider_need_not_wait_for_the_deadline(world: World) -> None:
    done, _ = await world.begin(state="DELIVERED")
    await world.letter(done, word(200, DONE))
    dead, _ = await world.begin(state="FAILED", dead=(400, b"no"))
    await world.due()
    assert await world.reconciler.step() == 2
    assert [(await world.task(task_id))[0] for task_id in (done, dead)] == ["completed", "failed"]


async def test_that_a_job_was_accepted_is_no_end_but_news(world: World) -> None:
    task_id, _ = await world.begin(state="DELIVERED")
    await world.letter(task_id, word(202))
    await world.due()
    assert await world.reconciler.step() == 1
    assert (await world.task(task_id))[0] == "processing"
    assert not (await world.dispatch(task_id))["held"]
    await world.overdue(task_id)
    assert await world.reconciler.step() == 1
    assert (await world.task(task_id))[1] == "timeout"


# Whatever the provider does


@pytest.mark.parametrize("seed", range(3))
async def test_every_task_ends(world: World, pool: Pool, owner: Connection, seed: int) -> None:
    """Seeded: thirty tasks, a provider that changes its mind at each step, and time that passes."""
    chance = random.Random(seed)
    expiry = Expiry(pool, world.store.announce)
    ids = [
        (
            await world.begin(
                state=chance.choice([None, "CREATED", "ACTIVE", "DELIVERED", "FAILED", "RETRY", "CANCELED"]),
                gone=chance.random() < 0.5,
                dead=chance.choice([None, None, (500, b"x"), (0, b"")]),
                at=chance.choice([LONG_AGO, 4e9]),
            )
        )[0]
        for _ in range(30)
    ]
    for task_id in ids:
        if chance.random() < 0.2:
            await world.letter(task_id, word(chance.choice([200, 202, 500]), chance.choice([DONE, b"", b"[]"])))
        if chance.random() < 0.3:
            await world.store.report(task_id, Report(attempt=1, progress=3), signed(task_id))
    strange = [None, None, Reply(500), Reply(429, b"{}", {"RateLimit-Limit": "1"}), Reply(200, b"{"), Reply(404)]
    for _ in range(100):
        world.memory.reply = chance.choice(strange)
        world.reconciler._away_until = 0.0
        await world.reconciler.step()
        await expiry.expire()
        for taken in await world.outbox._take(50):
            await world.outbox._sent(taken["task_id"], 1, None if taken["over"] else world.memory.add())
        await world.due()
        # an hour goes by, for some
        await world.overdue(*chance.sample(ids, 10))
        if not await owner.fetchval("select count(*) from image_generations where status in ('pending', 'processing')"):
            break
    else:
        raise AssertionError([dict(await world.dispatch(t)) for t in ids if (await world.task(t))[0] in OPEN])
    ends = await owner.fetch(
        "select task_id, count(*) from task_events where status in ('completed', 'failed') group by 1"
    )
    assert {row["task_id"] for row in ends} == set(ids)
    assert {row["count"] for row in ends} == {1}
