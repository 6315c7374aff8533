"""Many joins of streams of many tasks are few calls, and each caller still sees his own, in one picture."""

import asyncio
from typing import cast

import asyncpg
import pytest

from server.db import Pool
from server.tasks.overviews import OVERVIEWS_A_CALL_MAX, Overview, Overviews
from server.tasks.state import Report
from server.tasks.store import TaskStore
from tests.tasks.conftest import Counting, User


@pytest.fixture
def overviews(counting: Counting) -> Overviews:
    return Overviews(cast(Pool, counting), public_url="")


async def made(store: TaskStore, user: User, number: int) -> list[str]:
    return [(await store.create(user.claims, user.id, "a boat", b"{}")).task_id for _ in range(number)]


async def test_many_at_once_are_few_calls_and_each_has_his_own(
    store: TaskStore, overviews: Overviews, counting: Counting
) -> None:
    users = [User() for _ in range(10)]
    tasks = [await made(store, user, number) for number, user in enumerate(users)]
    everybodys = [task for made_by in tasks for task in made_by]
    asked = [(number, named) for number in range(10) for named in (None, tasks[number], everybodys) for _ in range(5)]
    found = await asyncio.gather(
        *(overviews.read(users[number].claims, users[number].id, named) for number, named in asked)
    )
    for (number, _), overview in zip(asked, found, strict=True):
        # Whatever was named, of others' there is nothing; oldest first.
        assert [task.task_id for task in overview.tasks] == tasks[number]
        assert overview.seq == number
    assert sum(counting.calls) == len(asked)
    assert len(counting.calls) <= len(asked) / OVERVIEWS_A_CALL_MAX + 3, counting.calls


async def test_nobody_sees_the_numbers_of_another(store: TaskStore, overviews: Overviews, user: User) -> None:
    await made(store, user, 2)
    other = User()
    theirs, own = await asyncio.gather(
        overviews.read(other.claims, user.id, None), overviews.read(user.claims, user.id, [])
    )
    assert (theirs, own) == (Overview(0, 0, []), Overview(2, 0, []))


async def test_each_of_many_is_one_picture_however_much_is_written(
    store: TaskStore, overviews: Overviews, user: User
) -> None:
    tasks = await made(store, user, 3)

    async def write(task_id: str) -> None:
        for progress in range(1, 100):
            await store.report(task_id, Report(attempt=1, progress=progress))

    writing = asyncio.gather(*map(write, tasks))
    rounds = 0
    while not writing.done():
        for seq, _, found in await asyncio.gather(*(overviews.read(user.claims, user.id, None) for _ in range(5))):
            # Three tasks began with one event each; every event since is in the version of one of them.
            assert max(task.seq for task in found) == seq == sum(task.version for task in found)
        rounds += 1
    await writing
    assert rounds > 3


async def test_what_spoils_one_does_not_spoil_the_others(store: TaskStore, overviews: Overviews, user: User) -> None:
    await made(store, user, 1)
    found = await asyncio.gather(
        overviews.read(user.claims, user.id, None),
        overviews.read("no JSON", user.id, None),
        overviews.read(user.claims, user.id, None),
        return_exceptions=True,
    )
    assert isinstance(found[1], asyncpg.PostgresError)
    assert [len(f.tasks) for f in (found[0], found[2]) if not isinstance(f, BaseException)] == [1, 1]


async def test_nothing_of_a_caller_is_left_on_the_connection(store: TaskStore, pool: Pool, user: User) -> None:
    await Overviews(pool, public_url="").read(user.claims, user.id, None)
    for _ in range(pool.get_max_size()):
        found = await pool.fetchrow("select current_user, coalesce(current_setting('request.jwt.claims', true), '')")
        assert tuple(found or ()) == ("service_role", "")
