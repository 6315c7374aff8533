"""After an absence of Postgres an idle dispatcher gives the others time to renew, counted from the absence's end."""

import asyncio
import time

import asyncpg
import pytest

from server.db import Pool
from server.dispatch import engine, messages
from server.dispatch.delivery import Sender
from server.dispatch.engine import Engine
from server.dispatch.message import Draft
from server.dispatch.messages import Messages
from server.dispatch.metrics import DispatcherMetrics
from tests.conftest import Connection
from tests.deployment import Database
from tests.receiver import until

RECOVERY_SECONDS = 1.0
# Its own steps fail once in that time and are not made meanwhile: this is when one of them is about due again.
AWAY_SECONDS = 1.95


async def test_an_absence_longer_than_the_recovery(
    pool: Pool, owner: Connection, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "RECOVERY_SECONDS", RECOVERY_SECONDS)
    monkeypatch.setattr(engine, "REAP_SECONDS", 0.05)
    monkeypatch.setattr(engine, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(messages, "LEASE_SECONDS", 0.5)
    store = Messages(pool, kept_days=1, dead_letters_kept_days=7)
    await store.publish(Draft(url="https://example.com/"), "")
    (held,) = await store.claim(1, 0)  # by somebody who is cut off as well
    idle = Engine(store, Sender("key", ()), 1, DispatcherMetrics(1), lambda: None)
    idle._cut_off_at = time.monotonic()  # it takes nobody for dead before the absence
    running = asyncio.create_task(idle.run())
    admin = await asyncpg.connect(database.owner_url.replace(database.name, "postgres"))
    try:
        await admin.execute(f"alter database {database.name} allow_connections false")
        await admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and usename = 'taskbeam'",
            database.name,
        )
        await asyncio.sleep(AWAY_SECONDS)
    finally:
        await admin.execute(f"alter database {database.name} allow_connections true")
        await admin.close()
    back = time.monotonic()

    async def taken_over() -> bool:
        return bool(await owner.fetchval("select fence > $1 from dispatcher.messages", held.fence))

    try:
        await until(taken_over, "the lease of one that never came back is taken over", 10)
        assert time.monotonic() - back > RECOVERY_SECONDS * 0.7
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
