"""The numbers of an owner's events: without gaps, and never one below a number that was already seen.

That is what lets a cursor over many tasks be one number.
"""

import asyncio
import random

import asyncpg

from server.db import Pool
from server.tasks.expiry import LOOKUPS_MAX
from server.tasks.reading import TaskReader
from server.tasks.snapshot import TaskChange
from server.tasks.state import Complete, Fail, Report
from server.tasks.store import TaskStore
from tests.conftest import Connection
from tests.deployment import Database
from tests.tasks.conftest import User, expiry_on

WRITERS = 8


async def _watch(pool: Pool, user: User, over: asyncio.Event) -> list[int]:
    """Poll as a follower of all tasks does: what lies after the last number seen."""
    seen: list[int] = []
    last_round = False
    while not last_round:
        last_round = over.is_set()
        rows = await pool.fetch(
            "select owner_seq from public.task_events where user_id = $1 and owner_seq > $2 order by owner_seq",
            user.id,
            seen[-1] if seen else 0,
        )
        seen += [row["owner_seq"] for row in rows]
        await asyncio.sleep(0)
    return seen


async def test_whoever_read_up_to_a_number_has_seen_everything_up_to_it(
    database: Database, store: TaskStore, pool: Pool, owner: Connection
) -> None:
    users = [User() for _ in range(3)]
    tasks = [(await store.create(u.claims, u.id, "a boat", b"{}")).task_id for u in users for _ in range(4)]

    async def write(seed: int) -> None:
        """Changes of one or more tasks, each held open for a moment, so that commits overtake each other."""
        order = random.Random(seed)
        connection = await asyncpg.connect(database.owner_url)
        for _ in range(12):
            async with connection.transaction():
                await connection.execute(
                    """with locked as (
                         select task_id from image_generations where task_id = any ($1) order by task_id for update)
                       update image_generations set message = $2 where task_id in (select task_id from locked)""",
                    order.sample(tasks, order.choice([1, 1, 2, 5])),
                    f"{seed} {order.random()}",
                )
                await asyncio.sleep(order.random() * 0.01)
        await connection.close()

    over = asyncio.Event()
    watchers = [asyncio.create_task(_watch(pool, u, over)) for u in users]
    await asyncio.gather(*(write(seed) for seed in range(WRITERS)))
    over.set()
    for user, seen in zip(users, await asyncio.gather(*watchers), strict=True):
        assert seen == list(range(1, len(seen) + 1))
        assert await owner.fetchval("select seq from taskbeam.owners where user_id = $1", user.id) == len(seen)
    assert await owner.fetchval("select count(*) from task_events") > 150
    assert await owner.fetchval(
        """select bool_and(versions = newest) from (
             select count(*) as versions, max(e.version) as newest from task_events e group by task_id) t"""
    )


async def test_writers_that_cross_do_not_deadlock(pool: Pool, store: TaskStore, owner: Connection) -> None:
    users = [User() for _ in range(3)]
    tasks = [(await store.create(u.claims, u.id, "a boat", b"{}")).task_id for _ in range(8) for u in users]
    await owner.execute("update image_generations set deadline_at = now() - interval '1 s' where random() < 0.5")
    await owner.execute("update taskbeam.dispatches set lookups = $1", LOOKUPS_MAX)

    async def drive(seed: int) -> None:
        order = random.Random(seed)
        for task_id in order.sample(tasks, len(tasks)):
            await store.report(task_id, Report(attempt=1, progress=order.randrange(90)))
            if order.random() < 0.2:
                await expiry_on(pool, store).expire()
            if order.random() < 0.2:
                user = order.choice(users)
                await store.create(user.claims, user.id, "another", b"{}")
            if seed == 0:
                await store.complete(task_id, Complete(attempt=1, result="/results/a"))
            elif seed == 1:
                await store.fail(task_id, Fail(attempt=1, error="x", error_code="y"))

    await asyncio.gather(*(drive(seed) for seed in range(WRITERS)))  # a deadlock is an error of one of them
    for user in users:
        numbers = await owner.fetch("select owner_seq from task_events where user_id = $1 order by 1", user.id)
        assert [row["owner_seq"] for row in numbers] == list(range(1, len(numbers) + 1))
    assert await owner.fetchval("select count(*) from image_generations where status in ('completed', 'failed')") >= 24


async def test_one_statement_over_many_tasks_numbers_all_of_them(
    store: TaskStore, reader: TaskReader, owner: Connection, user: User
) -> None:
    other = User()
    mine = [(await store.create(user.claims, user.id, "a boat", b"{}")).task_id for _ in range(5)]
    theirs = [(await store.create(other.claims, other.id, "a boat", b"{}")).task_id for _ in range(3)]
    await owner.execute("update image_generations set status = 'processing'")
    assert [(c.seq, c.version) for c in await reader.all_since(user.claims, user.id, 5)] == [
        (n, 2) for n in range(6, 11)
    ]
    assert {c.task_id for c in await reader.all_since(other.claims, other.id, 3)} == set(theirs)
    assert (await reader.overview(user.claims, user.id, [])).seq == 2 * len(mine)


async def test_an_upsert_of_others_is_logged_once_a_row(
    store: TaskStore, reader: TaskReader, owner: Connection, user: User
) -> None:
    known = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    await owner.execute(
        """insert into image_generations (task_id, user_id, prompt) values ($1, $2, 'x'), ('new', $2, 'x')
           on conflict (task_id) do update set status = 'processing'""",
        known,
        user.id,
    )
    changes = await reader.all_since(user.claims, user.id, 1)
    assert sorted((c.task_id, c.version, c.status) for c in changes) == sorted(
        [(known, 2, "processing"), ("new", 1, "pending")]
    )
    assert sorted(c.seq for c in changes) == [2, 3]


async def test_a_trigger_of_others_that_changes_the_row_again_is_logged_too(
    store: TaskStore, published: list[TaskChange], owner: Connection, user: User
) -> None:
    await owner.execute(
        """create function echo() returns trigger language plpgsql as $$
             begin
               update image_generations set message = 'echo' where task_id = new.task_id and message is null;
               return null;
             end $$;
           create trigger echo after update on image_generations for each row execute function echo()"""
    )
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    assert await store.report(task_id, Report(attempt=1, progress=5)) == "applied"
    log = await owner.fetch(
        "select version, owner_seq, message from task_events where task_id = $1 order by 1", task_id
    )
    assert [(row["version"], row["message"]) for row in log] == [(1, None), (2, None), (3, "echo")]
    assert sorted(row["owner_seq"] for row in log) == [1, 2, 3]


async def test_a_new_deadline_is_no_change(store: TaskStore, owner: Connection, user: User) -> None:
    await store.create(user.claims, user.id, "a boat", b"{}")
    await owner.execute("update image_generations set deadline_at = now(), updated_at = now(), prompt = prompt")
    assert await owner.fetchval("select count(*) from task_events") == 1
    assert await owner.fetchval("select seq from taskbeam.owners") == 1
