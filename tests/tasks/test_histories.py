"""Many joins are few calls, and each pair of a caller and a task is still decided for itself."""

import asyncio
from typing import cast

import asyncpg
import pytest

from server.db import Pool
from server.tasks.histories import PAIRS_A_CALL_MAX, Histories
from server.tasks.state import Complete, Report
from server.tasks.store import TaskStore
from tests.conftest import Connection
from tests.tasks.conftest import Counting, User


@pytest.fixture
def histories(counting: Counting) -> Histories:
    return Histories(cast(Pool, counting), public_url="")


async def made(store: TaskStore, user: User) -> str:
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    await store.report(task_id, Report(attempt=1, progress=5))
    await store.complete(task_id, Complete(attempt=1, result="/r"))
    return task_id


async def test_a_thousand_at_once_are_a_few_calls_and_each_has_its_own(
    store: TaskStore, histories: Histories, counting: Counting
) -> None:
    users = [User() for _ in range(10)]
    tasks = [await made(store, user) for user in users]
    # Everybody asks for everybody's.
    pairs = [(user, place, task) for user in users for place, task in enumerate(tasks) for _ in range(10)]
    found = await asyncio.gather(*(histories.read(user.claims, task, 1) for user, _, task in pairs))
    for (user, place, task), (changes, continues) in zip(pairs, found, strict=True):
        if users[place] is user:
            assert ([(c.task_id, c.version) for c in changes], continues) == ([(task, 2), (task, 3)], True)
        else:
            assert (changes, continues) == ([], False)
    assert sum(counting.calls) == len(pairs)
    assert len(counting.calls) <= len(pairs) / PAIRS_A_CALL_MAX + 3, counting.calls


async def test_one_alone_does_not_wait_for_company(
    store: TaskStore, histories: Histories, counting: Counting, user: User
) -> None:
    task_id = await made(store, user)
    assert len((await histories.read(user.claims, task_id, 0)).changes) == 3
    assert counting.calls == [1]


async def test_what_spoils_one_does_not_spoil_the_others(store: TaskStore, histories: Histories, user: User) -> None:
    task_id = await made(store, user)
    found = await asyncio.gather(
        histories.read(user.claims, task_id, 0),
        histories.read('{"role":"authenticated","sub":"nobody"}', task_id, 0),
        histories.read("no JSON", task_id, 0),
        histories.read(user.claims, task_id, 2),
        return_exceptions=True,
    )
    assert isinstance(found[1], asyncpg.PostgresError)
    assert isinstance(found[2], asyncpg.PostgresError)
    assert not isinstance(found[0], BaseException)
    assert not isinstance(found[3], BaseException)
    assert (len(found[0].changes), len(found[3].changes)) == (3, 1)


async def test_who_has_gone_is_not_waited_for(store: TaskStore, histories: Histories, user: User) -> None:
    task_id = await made(store, user)
    asking = [asyncio.create_task(histories.read(user.claims, task_id, 0)) for _ in range(20)]
    await asyncio.sleep(0.01)
    for task in asking[::2]:
        task.cancel()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert [isinstance(f, asyncio.CancelledError) for f in found] == [True, False] * 10
    assert all(len(f.changes) == 3 for f in found if not isinstance(f, BaseException))


async def test_a_database_that_is_away_is_told_to_all_of_them(
    pool: Pool, owner: Connection, store: TaskStore, user: User
) -> None:
    histories = Histories(pool, public_url="")
    task_id = await made(store, user)
    await owner.execute("alter role taskbeam connection limit 0")
    try:
        await owner.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'taskbeam'")
        await asyncio.sleep(0.1)
        found = await asyncio.gather(
            *(histories.read(user.claims, task_id, 0) for _ in range(5)), return_exceptions=True
        )
        assert all(isinstance(f, asyncpg.TooManyConnectionsError) for f in found), found
    finally:
        await owner.execute("alter role taskbeam connection limit -1")
    assert len((await histories.read(user.claims, task_id, 0)).changes) == 3


async def test_nothing_of_a_caller_is_left_on_the_connection(store: TaskStore, pool: Pool, user: User) -> None:
    await Histories(pool, public_url="").read(user.claims, await made(store, user), 0)
    for _ in range(pool.get_max_size()):
        found = await pool.fetchrow("select current_user, coalesce(current_setting('request.jwt.claims', true), '')")
        assert tuple(found or ()) == ("service_role", "")
