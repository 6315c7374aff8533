"""A step of the clock: seen from Postgres, all that it holds lies an hour earlier or later than it did."""

import asyncpg
import pytest

from server.clock import Clock
from server.db import Pool
from server.dispatch.delivery import Sender
from server.dispatch.engine import RECOVERY_SECONDS, Engine
from server.dispatch.message import Draft
from server.dispatch.messages import LEASE_SECONDS, Messages
from server.dispatch.metrics import DispatcherMetrics
from server.dispatch.moved import hand_back
from server.dispatch.step import follow_step
from server.tasks.expiry import LOOKUPS_MAX
from server.tasks.store import TaskStore
from tests.tasks.conftest import expiry_on

HOUR = 3_600
TASK = """insert into public.image_generations (task_id, user_id, prompt, status, began_at, deadline_at)
          values ('t_step', gen_random_uuid(), 'x', 'processing', now(), now() + interval '15 minutes')"""


async def step(connection: "asyncpg.Connection[asyncpg.Record]", seconds: int) -> None:
    """The clock is put forward (or back), and all that was noted by it stays behind."""
    for table, columns in (
        ("public.image_generations", ["deadline_at"]),
        ("taskbeam.dispatches", ["next_at", "leased_until", "lookup_at", "lookup_leased_until"]),
        ("dispatcher.messages", ["due_at", "leased_until"]),
        ("dispatcher.deduplications", ["expires_at"]),
    ):
        sets = ", ".join(f"{column} = {column} - interval '{seconds} seconds'" for column in columns)
        await connection.execute(f"update {table} set {sets}")  # noqa: S608


@pytest.mark.parametrize("hour", [HOUR, -HOUR])
async def test_nothing_comes_early_and_nothing_an_hour_late(
    pool: Pool, owner: "asyncpg.Connection[asyncpg.Record]", hour: int
) -> None:
    await owner.execute(TASK)
    await owner.execute(
        """insert into taskbeam.dispatches (task_id, attempt, lookups, lookup_at, lookup_leased_until)
           values ('t_step', 1, $1, now() + interval '10 minutes', now() + interval '1 minute')""",
        LOOKUPS_MAX,
    )
    messages = Messages(pool, kept_days=None, dead_letters_kept_days=None)
    store = TaskStore(pool, lambda _: None, public_url="", deadline_seconds=900)
    held_id, _ = await messages.publish(Draft(url="http://a.test/", deduplication_id="one"), "")
    (held,) = await messages.claim(1, 0)
    waiting_id, _ = await messages.publish(Draft(url="http://b.test/"), "")
    assert held.id == held_id

    await step(owner, hour)
    await follow_step(owner, hour)

    assert await expiry_on(pool, store).expire() == 0
    assert await messages.expired() == []
    left = await owner.fetchval("select deadline_at - now() from public.image_generations where task_id = 't_step'")
    assert 890 < left.total_seconds() < 901
    lease = await owner.fetchval("select leased_until - now() from dispatcher.messages where id = $1", held_id)
    assert 0 < lease.total_seconds() <= LEASE_SECONDS
    assert [message.id for message in await messages.claim(1, 0)] == [waiting_id]
    assert await messages.publish(Draft(url="http://a.test/", deduplication_id="one"), "") == (held_id, True)
    assert await owner.fetchval("select next_at <= now() from taskbeam.dispatches")
    look = await owner.fetchrow("select lookup_at - now(), lookup_leased_until - now() from taskbeam.dispatches")
    assert look is not None
    assert 590 < look[0].total_seconds() < 601
    assert 50 < look[1].total_seconds() < 61
    # A row nobody else may see changed: no version, no event.
    assert await owner.fetchval("select version from public.image_generations where task_id = 't_step'") == 1


async def test_without_it_all_that(pool: Pool, owner: "asyncpg.Connection[asyncpg.Record]") -> None:
    """What it is for: else the test above proves nothing."""
    await owner.execute(TASK)
    messages = Messages(pool, kept_days=None, dead_letters_kept_days=None)
    store = TaskStore(pool, lambda _: None, public_url="", deadline_seconds=900)
    await messages.publish(Draft(url="http://a.test/"), "")
    await step(owner, -HOUR)
    assert await messages.claim(1, 0) == []
    await step(owner, 2 * HOUR)
    assert len(await messages.claim(1, 0)) == 1
    assert await expiry_on(pool, store).expire() == 1


async def test_what_was_held_at_the_end_is_due_again_and_not_counted(
    pool: Pool, owner: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    messages = Messages(pool, kept_days=None, dead_letters_kept_days=None)
    await owner.execute(TASK)
    await owner.execute(
        """insert into taskbeam.dispatches (task_id, attempt, lookup_leased_until)
           values ('t_step', 1, now() + interval '1 minute')"""
    )
    for _ in range(5):
        if not await owner.fetchval("select exists (select from dispatcher.messages)"):
            await messages.publish(Draft(url="http://a.test/", max_retries=1), "")
        (held,) = await messages.claim(1, 0)
        assert held.deliveries == 1
        await hand_back(owner)
        assert await owner.fetchval("select lookup_leased_until from taskbeam.dispatches") is None


async def test_a_step_is_no_reason_to_take_others_for_dead(
    pool: Pool, owner: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    messages = Messages(pool, kept_days=None, dead_letters_kept_days=None)
    message_id, _ = await messages.publish(Draft(url="http://a.test/"), "")
    await messages.claim(1, 0)
    sender = Sender("sig_0123456789abcdefghijklmnopqr", set())
    engine = Engine(messages, sender, 1, DispatcherMetrics(1), lambda: None)
    wall = [1_800_000_000.0]
    engine._clock = Clock(lambda: wall[0], lambda: 0.0)
    await step(owner, HOUR)
    wall[0] += HOUR
    state = "select state::text from dispatcher.messages where id = $1"
    for _ in range(2):  # its holder lives, and renews the lease meanwhile
        await engine._reap()
        assert await owner.fetchval(state, message_id) == "active"
    engine._cut_off_at -= RECOVERY_SECONDS
    await engine._reap()
    assert await owner.fetchval(state, message_id) == "retry"
    await sender.close()
