"""The reconciler of one process with what it needs, on the database of a test, and a provider to be asked."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import asyncpg
from qstash import AsyncQStash

from server.db import Pool
from server.dispatch.finish import Finish
from server.dispatch.lookup import Lookup
from server.dispatch.outbox import Outbox
from server.dispatch.reconciler import Reconciler
from server.dispatch.settle import Settle
from server.metrics import Metrics
from server.settings import Settings
from server.tasks.snapshot import TaskChange
from server.tasks.store import TaskStore
from tests.conftest import Connection
from tests.provider import Memory
from tests.tasks.conftest import User, store_on

CALLBACK = "https://tasks.example.com/api/generate/callback?task={}&attempt=1"
RESULT = "https://cdn.example.com/1.png"
DONE = b'{"url":"https://cdn.example.com/1.png"}'
LONG_AGO = 1_000_000_000.0


@dataclass
class World:
    """One process' parts on the database of this test."""

    store: TaskStore
    outbox: Outbox
    reconciler: Reconciler
    published: list[TaskChange]
    owner: Connection
    memory: Memory

    async def begin(self, **about: Any) -> tuple[str, str]:
        """A task whose message is at the provider, as `about` says; both ids."""
        user = User()
        task_id = (await self.store.create(user.claims, user.id, "a boat", b"{}")).task_id
        message_id = self.memory.add(**{"callback": CALLBACK.format(task_id), **about})
        await self.outbox._sent(task_id, 1, message_id)
        return task_id, message_id

    async def letter(self, task_id: str, body: bytes) -> None:
        """A callback of this task's that could not be delivered."""
        self.memory.add(url=CALLBACK.format(task_id), state="FAILED", dead=(503, b"away"), body=body)

    async def overdue(self, *task_ids: str) -> None:
        await self.owner.execute(
            "update image_generations set deadline_at = now() - interval '1 s' where task_id = any ($1)", task_ids
        )

    async def due(self) -> None:
        """Whatever is to be looked up some time is to be looked up now."""
        await self.owner.execute("update taskbeam.dispatches set lookup_at = now() where lookup_at is not null")

    async def task(self, task_id: str) -> tuple[str, str | None, str | None]:
        """Status, error code, and result or error."""
        row = await self.owner.fetchrow(
            "select status::text, error_code, coalesce(result, error) from image_generations where task_id = $1",
            task_id,
        )
        assert row is not None
        return tuple(row)

    async def dispatch(self, task_id: str) -> asyncpg.Record:
        row = await self.owner.fetchrow(
            """select *, extract(epoch from lookup_at - now())::float8 as pause, lookup_leased_until > now() as held
                 from taskbeam.dispatches where task_id = $1""",
            task_id,
        )
        assert row is not None
        return row


def member(pool: Pool, settings: Settings, owner: Connection, memory: Memory, url: str) -> World:
    settings = dataclasses.replace(settings, qstash_url=url, public_url="https://tasks.example.com")
    published: list[TaskChange] = []
    store = store_on(pool, published)
    client = AsyncQStash(settings.qstash_token or "", base_url=url, retry=False)
    outbox = Outbox(pool, store, client, settings, b"secret", Metrics())
    settle = Settle(store, Finish(store, settings.data_dir / "results", b"secret"))
    reconciler = Reconciler(pool, store, settle, outbox, Lookup(client), settings, Metrics())
    return World(store, outbox, reconciler, published, owner, memory)
