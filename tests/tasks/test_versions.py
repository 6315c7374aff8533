"""The oldest Postgres we run on and the newest, with an owner who is no superuser: the same path on both."""

import asyncpg
import pytest

from server.db import acting_as
from server.tasks.reading import TaskReader
from server.tasks.snapshot import TaskChange
from server.tasks.state import Complete, Fail, Report
from tests.clusters import Elsewhere
from tests.tasks.conftest import User, signed, store_on


async def test_the_path_of_a_task(hosted: Elsewhere, user: User) -> None:
    published: list[TaskChange] = []
    async with hosted.pool() as pool:
        store, reader = store_on(pool, published), TaskReader(pool, public_url="")
        task_id = (await store.create(user.claims, user.id, "a boat", b'{"n":1}')).task_id
        assert await store.report(task_id, Report(attempt=1, progress=40), signed("a")) == "applied"
        assert await store.report(task_id, Report(attempt=1, progress=40), signed("b")) == "duplicate"
        assert await store.complete(task_id, Complete(attempt=1, result="/results/a"), signed("c")) == "applied"
        assert await store.fail(task_id, Fail(attempt=1, error="late", error_code="x"), signed("d")) == "stale"

        changes = (await reader.since(user.claims, task_id, 0)).changes
        assert [(c.version, c.status) for c in changes] == [(1, "pending"), (2, "processing"), (3, "completed")]
        assert [c.body for c in changes] == [c.body for c in published]
        assert (await reader.overview(user.claims, user.id, [])).seq == 3
        seq, _, overview = await reader.overview(user.claims, user.id, None)
        assert (seq, [c.body for c in overview]) == (3, [changes[-1].body])


async def test_nobody_sees_the_task_of_another(hosted: Elsewhere, user: User) -> None:
    async with hosted.pool() as pool:
        store, reader = store_on(pool, []), TaskReader(pool, public_url="")
        task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
        assert (await reader.since(User().claims, task_id, 0)).changes == []
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with acting_as(pool, user.claims) as connection:
                await connection.execute("update image_generations set status = 'processing'")


async def test_others_changes_are_logged(hosted: Elsewhere, user: User) -> None:
    """By the owner, whom row level security would hold too, and who is a member of the roles it made."""
    async with hosted.pool() as pool, hosted.connect() as owner:
        reader = TaskReader(pool, public_url="")
        await owner.execute(
            "insert into image_generations (task_id, user_id, prompt) values ('t', $1, 'a boat')", user.id
        )
        await owner.execute("update image_generations set status = 'completed', result = '/r' where task_id = 't'")
        changes = (await reader.since(user.claims, "t", 0)).changes
        assert [(c.version, c.status) for c in changes] == [(1, "pending"), (2, "completed")]


async def test_a_users_tasks_go_with_the_user(hosted: Elsewhere, user: User) -> None:
    async with hosted.pool() as pool, hosted.connect() as owner:
        await store_on(pool, []).create(user.claims, user.id, "a boat", b"{}")
        await owner.execute("delete from auth.users where id = $1", user.id)
        for table in ("image_generations", "task_events", "taskbeam.dispatches", "taskbeam.owners"):
            assert await owner.fetchval(f"select count(*) from {table}") == 0, table  # noqa: S608
