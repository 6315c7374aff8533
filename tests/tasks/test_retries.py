"""A failed task gets a new attempt when its owner asks for it, once for each time, and takes what came too late."""

import asyncio

import pytest

from server.db import Pool
from server.tasks.reading import TaskReader
from server.tasks.retries import ATTEMPTS_MAX, Exhausted, NotFailed, Retries
from server.tasks.snapshot import TaskChange
from server.tasks.state import Complete, Fail, Report, State
from server.tasks.store import NoSuchTask, TaskStore
from tests.conftest import Connection
from tests.tasks.conftest import User, signed
from tests.tasks.test_store import row_of

FAILED = Fail(attempt=1, error="stopped", error_code="cancelled", cancelled=True)


@pytest.fixture
def retries(pool: Pool, store: TaskStore) -> Retries:
    return Retries(pool, store.announce, store.turn)


@pytest.fixture
async def task_id(store: TaskStore, user: User) -> str:
    return (await store.create(user.claims, user.id, "a boat", b"{}")).task_id


async def test_it_begins_anew(
    store: TaskStore, retries: Retries, task_id: str, user: User, owner: Connection, published: list[TaskChange]
) -> None:
    await store.report(task_id, Report(attempt=1, delivery=2, progress=40, message="m", preview="p", step=1, steps=2))
    await store.fail(task_id, FAILED)
    await retries.retry(user.claims, task_id)
    assert await row_of(owner, task_id) == State(attempt=2, version=4, status_version=4)
    assert [(change.version, change.status) for change in published[3:]] == [(4, "pending")]
    sent = await owner.fetch("select attempt, sent_at, tries from taskbeam.dispatches order by attempt")
    assert [tuple(row) for row in sent] == [(1, None, 0), (2, None, 0)]
    seconds = "select extract(epoch from deadline_at - now())::float8 from image_generations where began_at is null"
    assert await owner.fetchval(seconds) == pytest.approx(86_400, abs=60)
    assert await store.complete(task_id, Complete(attempt=1, result="/late"), signed("1")) == "stale"
    assert await store.complete(task_id, Complete(attempt=2, result="/r"), signed("2")) == "applied"


async def test_what_came_too_late_is_taken(
    store: TaskStore, retries: Retries, task_id: str, user: User, owner: Connection, published: list[TaskChange]
) -> None:
    """The newest attempt's, and nothing is sent."""
    await store.fail(task_id, FAILED)
    await store.complete(task_id, Complete(attempt=1, result="/late/1"), signed("1"))
    await owner.execute("update image_generations set status = 'pending'")
    await store.fail(task_id, Fail(attempt=2, error="x", error_code="y"))
    await store.complete(task_id, Complete(attempt=2, result="/late/2"), signed("2"))
    published.clear()
    await retries.retry(user.claims, task_id)
    row = await row_of(owner, task_id)
    assert (row.status, row.result, row.attempt, row.progress, row.error) == ("completed", "/late/2", 3, 100, None)
    assert [(change.version, change.status) for change in published] == [(5, "pending"), (6, "completed")]
    assert await owner.fetchval("select max(attempt) from taskbeam.dispatches") == 1
    history = (await TaskReader(store._pool, public_url="").since(user.claims, task_id, 4)).changes
    assert [(change.version, change.status) for change in history] == [(5, "pending"), (6, "completed")]


async def test_of_two_at_once_one_wins(
    store: TaskStore, retries: Retries, task_id: str, user: User, owner: Connection
) -> None:
    await store.fail(task_id, FAILED)
    outcomes = await asyncio.gather(*(retries.retry(user.claims, task_id) for _ in range(4)), return_exceptions=True)
    assert [outcome for outcome in outcomes if outcome is None] == [None]
    assert {type(outcome) for outcome in outcomes} == {type(None), NotFailed}
    assert await owner.fetchval("select attempt from image_generations") == 2
    assert await owner.fetchval("select count(*) from taskbeam.dispatches") == 2


async def test_only_what_has_failed(store: TaskStore, retries: Retries, task_id: str, user: User) -> None:
    for change in (Report(attempt=1, progress=1), Complete(attempt=1, result="/r")):
        with pytest.raises(NotFailed):
            await retries.retry(user.claims, task_id)
        await (store.report(task_id, change) if isinstance(change, Report) else store.complete(task_id, change))
    with pytest.raises(NotFailed):
        await retries.retry(user.claims, task_id)


async def test_nobody_else_s(store: TaskStore, retries: Retries, task_id: str, user: User, owner: Connection) -> None:
    await store.fail(task_id, FAILED)
    for claims, name in ((User().claims, task_id), ('{"role":"authenticated"}', task_id), (user.claims, "absent")):
        with pytest.raises(NoSuchTask):
            await retries.retry(claims, name)
    assert await owner.fetchval("select attempt from image_generations") == 1


async def test_not_for_ever(store: TaskStore, retries: Retries, task_id: str, user: User) -> None:
    for attempt in range(1, ATTEMPTS_MAX):
        await store.fail(task_id, Fail(attempt=attempt, error="x", error_code="y"))
        await retries.retry(user.claims, task_id)
    await store.fail(task_id, Fail(attempt=ATTEMPTS_MAX, error="x", error_code="y"))
    with pytest.raises(Exhausted):
        await retries.retry(user.claims, task_id)
