"""Tasks that are asked for at once are accepted together, each as its own caller may and as if it were alone."""

import asyncio

import asyncpg

from server.auth import Caller
from server.db import Pool
from server.metrics import Metrics
from server.tasks.snapshot import TaskChange
from server.tasks.store import ParamsTooLarge, TaskStore
from server.tasks.tickets import Draft, Tickets, draft
from tests.conftest import Connection
from tests.tasks.conftest import User

LARGE = b'{"a":[' + b",".join([b"1e300"] * 400) + b"]}"


def ticket(user: User) -> Draft:
    return draft(Caller(user.id, user.claims, None))


async def test_each_as_its_own_caller(
    store: TaskStore, pool: Pool, published: list[TaskChange], owner: Connection
) -> None:
    one, other, stranger = User(), User(), User()
    drafts = [ticket(one), ticket(other)]
    told = await asyncio.gather(
        store.create(one.claims, one.id, "a boat", b'{"n":1}', None, drafts[0]),
        store.create(one.claims, one.id, "a fox", LARGE),
        store.create(one.claims, other.id, "a theft", b"{}"),
        store.create(other.claims, other.id, "a moon", b"{}", "fast", drafts[1]),
        store.create('{"role":"authenticated"}', stranger.id, "a ghost", b"{}"),
        store.create(one.claims, one.id, "a hat", b"{}"),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in told] == [
        TaskChange,
        ParamsTooLarge,
        asyncpg.InsufficientPrivilegeError,
        TaskChange,
        asyncpg.InsufficientPrivilegeError,
        TaskChange,
    ]
    made = [outcome for outcome in told if isinstance(outcome, TaskChange)]
    assert sorted(made, key=lambda c: c.task_id) == sorted(published, key=lambda c: c.task_id)
    rows = await owner.fetch(
        """select t.task_id, t.user_id::text, t.prompt, t.params::text, t.generator, t.began_at, d.attempt
             from image_generations t join taskbeam.dispatches d using (task_id) order by t.prompt"""
    )
    assert [tuple(row) for row in rows] == [
        (made[0].task_id, one.id, "a boat", '{"n": 1}', None, None, 1),
        (made[2].task_id, one.id, "a hat", "{}", None, None, 1),
        (made[1].task_id, other.id, "a moon", "{}", "fast", None, 1),
    ]
    assert await owner.fetchval("select count(*) from auth.users") == 2
    tickets = Tickets(pool, Metrics())
    for kept, change in zip(drafts, made[:2], strict=True):
        assert (await tickets.spend(kept.text, [])).task_ids == frozenset([change.task_id])


async def test_in_one_transaction(store: TaskStore, owner: Connection) -> None:
    users = [User() for _ in range(3)]
    await asyncio.gather(*(store.create(user.claims, user.id, "a boat", b"{}") for user in users * 4))
    assert await owner.fetchval("select count(distinct xact) from task_events") == 1
    numbers = await owner.fetch("select owner_seq from task_events order by user_id, owner_seq")
    assert [row["owner_seq"] for row in numbers] == [1, 2, 3, 4] * 3


async def test_an_owner_who_is_held_holds_up_nobody_else(store: TaskStore, user: User, owner: Connection) -> None:
    stranger = User()
    await store.create(user.claims, user.id, "a boat", b"{}")
    async with owner.transaction():
        await owner.execute("select from taskbeam.owners where user_id = $1 for update", user.id)
        held = [asyncio.create_task(store.create(user.claims, user.id, "a fox", b"{}")) for _ in range(3)]
        async with asyncio.timeout(2):
            for _ in range(3):
                await store.create(stranger.claims, stranger.id, "a moon", b"{}")
        assert not any(create.done() for create in held)
    assert sorted(change.seq for change in await asyncio.gather(*held)) == [2, 3, 4]
