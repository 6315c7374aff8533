"""A busy owner's writes wait for each other in the database; whoever reads does not wait for them."""

import asyncio

import asyncpg
import pytest

from server.db import Pool
from server.tasks.reading import TaskReader
from server.tasks.retries import Retries
from server.tasks.state import Fail, Report
from server.tasks.store import TaskStore
from tests.conftest import Connection
from tests.deployment import Database
from tests.tasks.conftest import User

READ_SECONDS_MAX = 1.0


async def test_writes_that_wait_for_their_owner_leave_connections_to_readers(
    database: Database, owner: Connection, store: TaskStore, reader: TaskReader, pool: Pool
) -> None:
    busy, other = User(), User()
    number = 3 * pool.get_max_size()
    tasks = [(await store.create(busy.claims, busy.id, "a boat", b"{}")).task_id for _ in range(number)]
    failed = [(await store.create(busy.claims, busy.id, "a boat", b"{}")).task_id for _ in range(number)]
    for task in failed:
        await store.fail(task, Fail(attempt=1, error="no paint", error_code="generator_error"))
    retries = Retries(pool, store.announce, store.turn)
    elsewhere = (await store.create(other.claims, other.id, "a boat", b"{}")).task_id
    holder = await asyncpg.connect(database.owner_url)
    holding = holder.transaction()
    await holding.start()
    await holder.execute("select from taskbeam.owners where user_id = $1 for update", busy.id)
    writes: list[asyncio.Task[str | None]] = [
        asyncio.create_task(store.report(task, Report(attempt=1, progress=1))) for task in tasks
    ]
    writes += [asyncio.create_task(retries.retry(busy.claims, task)) for task in failed]
    try:
        async with asyncio.timeout(5):
            while not await owner.fetchval("select count(*) from pg_locks where not granted"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for _ in range(pool.get_max_size()):
            async with asyncio.timeout(READ_SECONDS_MAX):
                assert (await reader.since(other.claims, elsewhere, 0)).changes
                await store.announce(elsewhere, 1)
    finally:
        await holding.rollback()
        await holder.close()
    # Not one was given up for having waited.
    assert await asyncio.gather(*writes) == ["applied"] * len(tasks) + [None] * len(failed)


async def test_who_waits_too_long_for_his_turn_is_told(
    database: Database, store: TaskStore, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.tasks.commits.ACQUIRE_TIMEOUT_SECONDS", 0.2)
    user = User()
    task = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    holder = await asyncpg.connect(database.owner_url)
    async with holder.transaction():
        await holder.execute("select from taskbeam.owners where user_id = $1 for update", user.id)
        writes = [
            asyncio.create_task(store.report(task, Report(attempt=1, progress=1))) for _ in range(pool.get_max_size())
        ]
        async with asyncio.timeout(2):
            done, _ = await asyncio.wait(writes, return_when=asyncio.FIRST_EXCEPTION)
        assert [type(write.exception()) for write in done] == [TimeoutError] * len(done)
    await asyncio.gather(*writes, return_exceptions=True)
    await holder.close()
