"""Deadlines, where nobody can be asked what became of a task."""

import asyncio
import json

import pytest

from server.db import Pool
from server.tasks.expiry import LOOKUPS_MAX, Expiry
from server.tasks.snapshot import TaskChange
from server.tasks.state import Complete, Report
from server.tasks.store import TaskStore
from tests.conftest import Connection
from tests.tasks.conftest import User, expiry_on
from tests.tasks.test_store import row_of


@pytest.fixture
def expiry(pool: Pool, store: TaskStore) -> Expiry:
    return expiry_on(pool, store)


async def _overdue(owner: Connection, *task_ids: str) -> None:
    """Past their deadline, and asked about in vain."""
    await owner.execute(
        "update image_generations set deadline_at = now() - interval '1 second' where task_id = any ($1)", task_ids
    )
    await owner.execute("update taskbeam.dispatches set lookups = $1", LOOKUPS_MAX)


async def test_what_can_be_asked_about_is_left_to_be_asked(
    store: TaskStore, expiry: Expiry, owner: Connection, user: User
) -> None:
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    await _overdue(owner, task_id)
    await owner.execute("update taskbeam.dispatches set lookups = lookups - 1")
    assert await expiry.expire() == 0
    # A retry by others has no message of ours.
    await owner.execute("update taskbeam.dispatches set attempt = 2")
    assert await expiry.expire() == 1


async def test_what_is_overdue_ends_and_nothing_else(
    store: TaskStore, expiry: Expiry, published: list[TaskChange], owner: Connection, user: User
) -> None:
    made = [(await store.create(user.claims, user.id, "a boat", b"{}")).task_id for _ in range(5)]
    pending, processing, done, later, unclaimed = made
    await store.report(processing, Report(attempt=1, progress=5))
    await store.complete(done, Complete(attempt=1, result="/results/a"))
    await store.report(later, Report(attempt=1))
    await _overdue(owner, pending, processing, done)
    before = len(published)
    assert await expiry.expire() == 2
    assert {(c.task_id, c.status) for c in published[before:]} == {(pending, "failed"), (processing, "failed")}
    row = await row_of(owner, processing)
    assert (row.status, row.error_code, row.progress, row.version, row.status_version) == ("failed", "timeout", 5, 3, 3)
    assert row.error
    assert {(await row_of(owner, t)).status for t in (later, unclaimed)} == {"processing", "pending"}
    assert await expiry.expire() == 0


async def test_two_processes_end_each_overdue_task_once_and_wait_for_none(
    store: TaskStore, expiry: Expiry, published: list[TaskChange], owner: Connection, user: User
) -> None:
    made = [(await store.create(user.claims, user.id, "a boat", b"{}")).task_id for _ in range(30)]
    await _overdue(owner, *made)
    published.clear()
    async with owner.transaction():
        await owner.fetchval("select task_id from image_generations where task_id = $1 for update", made[0])
        ended = await asyncio.wait_for(asyncio.gather(*(expiry.expire() for _ in range(3))), 2)
    assert sum(ended) == 29
    assert sorted(change.task_id for change in published) == sorted(made[1:])
    assert await expiry.expire() == 1


async def test_a_step_of_expiry_is_bounded(store: TaskStore, expiry: Expiry, owner: Connection, user: User) -> None:
    await store.create(user.claims, user.id, "a boat", b"{}")
    await owner.execute(
        """insert into image_generations (task_id, user_id, prompt, deadline_at)
           select 't' || n, $1, 'a boat', now() - interval '1 minute' from generate_series(1, 130) n""",
        user.id,
    )
    assert [await expiry.expire() for _ in range(3)] == [100, 30, 0]


async def test_a_task_that_nobody_begins_with_ends_too(
    store: TaskStore, expiry: Expiry, published: list[TaskChange], owner: Connection, user: User
) -> None:
    waiting = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    begun = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    await store.report(begun, Report(attempt=1))
    statement = "select extract(epoch from deadline_at - now())::float8 from image_generations where task_id = $1"
    assert await owner.fetchval(statement, waiting) == pytest.approx(86_400, abs=60)
    assert await owner.fetchval(statement, begun) == pytest.approx(900, abs=60)
    await _overdue(owner, waiting, begun)
    published.clear()
    assert await expiry.expire() == 2
    codes = {change.task_id: json.loads(change.body)["errorCode"] for change in published}
    assert codes == {waiting: "not_started", begun: "timeout"}


@pytest.mark.parametrize("never", [False, True])
async def test_a_task_that_a_rule_of_the_app_keeps_from_failing_holds_up_no_other(
    store: TaskStore, expiry: Expiry, owner: Connection, user: User, never: bool
) -> None:
    odd, *others = [(await store.create(user.claims, user.id, "a boat", b"{}")).task_id for _ in range(5)]
    await owner.execute("update image_generations set deadline_at = now() - interval '2 s' where task_id = $1", odd)
    await _overdue(owner, *others)
    rule = f"task_id <> '{odd}'" + ("" if never else " or status <> 'failed'")
    await owner.execute(f"alter table image_generations add constraint of_the_app check ({rule}) not valid")
    assert await expiry.expire() == 4
    assert {(await row_of(owner, task_id)).status for task_id in others} == {"failed"}
    assert await expiry.expire() == 0
    assert (await row_of(owner, odd)).status == "pending"
