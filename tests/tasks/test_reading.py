"""Reads: pages, histories and the tick's question stay right while others write."""

import asyncio
import base64
import json

import asyncpg
import msgspec
import pytest

from server.db import Pool
from server.tasks.overviews import SNAPSHOT_TASKS_MAX
from server.tasks.reading import HISTORY_CHUNK, BadPageCursor, TaskReader
from server.tasks.snapshot import TaskChange
from server.tasks.state import Complete, Fail, Report
from server.tasks.store import TaskStore
from tests.conftest import Connection
from tests.deployment import Database
from tests.tasks.conftest import User


async def _created(store: TaskStore, user: User, count: int) -> list[str]:
    return [(await store.create(user.claims, user.id, f"boat {n}", b"{}")).task_id for n in range(count)]


# One task


async def test_since_skips_mere_progress_but_the_newest(store: TaskStore, reader: TaskReader, user: User) -> None:
    (task_id,) = await _created(store, user, 1)
    for progress in (10, 20, 30):
        await store.report(task_id, Report(attempt=1, progress=progress))
    versions = [c.version for c in (await reader.since(user.claims, task_id, 0)).changes]
    assert versions == [1, 2, 4]
    assert [c.version for c in (await reader.since(user.claims, task_id, 2)).changes] == [4]
    assert [c.version for c in (await reader.since(user.claims, task_id, 99)).changes] == [4]
    await store.complete(task_id, Complete(attempt=1, result="/results/a"))
    assert [c.status for c in (await reader.since(user.claims, task_id, 1)).changes] == ["processing", "completed"]


async def test_a_snapshot_read_is_the_one_published(
    store: TaskStore, published: list[TaskChange], reader: TaskReader, user: User
) -> None:
    (task_id,) = await _created(store, user, 1)
    await store.report(task_id, Report(attempt=1, progress=10, preview="data:,x"))
    await store.report(task_id, Report(attempt=1, progress=20, preview="data:,y"))
    read = (await reader.since(user.claims, task_id, 0)).changes
    assert read[-1].body == published[-1].body
    # Of what came before, only the newest preview is kept; and none of a task that has ended.
    assert [msgspec.json.decode(c.body)["preview"] for c in read] == [None, None, "data:,y"]
    await store.fail(task_id, Fail(attempt=1, error="no", error_code="odd"))
    read = (await reader.since(user.claims, task_id, 0)).changes
    assert read[-1].body == published[-1].body
    assert {msgspec.json.decode(c.body)["preview"] for c in read} == {None}


# Pages


async def test_pages_follow_on_while_tasks_come_in(store: TaskStore, reader: TaskReader, user: User) -> None:
    before = await _created(store, user, 23)
    seen: list[str] = []
    cursor = None
    for _ in range(10):
        tasks, cursor = await reader.page(user.claims, user.id, limit=5, cursor=cursor, status=None)
        seen += [task.task_id for task in tasks]
        await _created(store, user, 2)
        if cursor is None:
            break
    assert seen == before[::-1]


async def test_pages_hold_all_of_tasks_created_at_the_same_instant(
    store: TaskStore, reader: TaskReader, owner: Connection, user: User
) -> None:
    await store.create(user.claims, user.id, "first", b"{}")
    await owner.execute(
        """insert into image_generations (task_id, user_id, prompt)
           select 't' || n, $1, 'x' from generate_series(1, 20) n""",
        user.id,
    )
    seen: list[str] = []
    cursor = None
    while True:
        tasks, cursor = await reader.page(user.claims, user.id, limit=3, cursor=cursor, status=None)
        seen += [task.task_id for task in tasks]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 21


async def test_pages_of_one_status(store: TaskStore, reader: TaskReader, user: User) -> None:
    made = await _created(store, user, 4)
    await store.complete(made[1], Complete(attempt=1, result="/results/a"))
    await store.complete(made[3], Complete(attempt=1, result="/results/a"))
    tasks, cursor = await reader.page(user.claims, user.id, limit=2, cursor=None, status="completed")
    assert ([task.task_id for task in tasks], cursor) == ([made[3], made[1]], None)


def _cursor(created_at: str, task_id: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([created_at, task_id]).encode()).decode()


async def test_a_cursor_that_is_not_ours(reader: TaskReader, user: User, subtests: pytest.Subtests) -> None:
    broken = ["x", "====", "bnVsbA", "WyIyMDI0LTAxLTAxVDAwOjAwOjAwWiJd", "é", "WyJ4IiwgIngiXQ"]
    instants = ["2024-01-01T00:00:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"]
    unheard_of = [_cursor(instant, "x") for instant in instants]
    unholdable = [_cursor("2024-01-01T00:00:00Z", task_id) for task_id in ("\0", "\ud800")]
    for cursor in [*broken, *unheard_of, *unholdable]:
        with subtests.test(cursor), pytest.raises(BadPageCursor):
            await reader.page(user.claims, user.id, limit=5, cursor=cursor, status=None)


# All tasks of a user


async def test_overview_is_one_picture_however_much_is_written(
    store: TaskStore, reader: TaskReader, pool: Pool, user: User
) -> None:
    """What it shows and what the log has after its number is all there is, and nothing twice."""
    made = await _created(store, user, 3)

    async def write(task_id: str) -> None:
        for progress in range(1, 40):
            await store.report(task_id, Report(attempt=1, progress=progress))

    writing = asyncio.gather(*map(write, made))
    rounds = 0
    while not writing.done():
        seq, _, tasks = await reader.overview(user.claims, user.id, None)
        assert max(task.seq for task in tasks) == seq
        logged = await pool.fetch(
            "select task_id, max(version) as newest from task_events where user_id = $1 and owner_seq <= $2 group by 1",
            user.id,
            seq,
        )
        assert {task.task_id: task.version for task in tasks} == {r["task_id"]: r["newest"] for r in logged}
        rounds += 1
    await writing
    assert rounds > 3


async def test_overview_has_the_open_ones_first_and_is_bounded(
    store: TaskStore, reader: TaskReader, owner: Connection, user: User
) -> None:
    (oldest,) = await _created(store, user, 1)
    await owner.execute(
        """insert into image_generations (task_id, user_id, prompt, status, result)
           select 't' || n, $1, 'x', 'completed', '/results/a' from generate_series(1, 150) n""",
        user.id,
    )
    seq, _, tasks = await reader.overview(user.claims, user.id, None)
    assert (seq, len(tasks), tasks[0].task_id) == (151, SNAPSHOT_TASKS_MAX, oldest)
    # Named ones, whatever they are.
    _, _, named = await reader.overview(user.claims, user.id, ["t1", oldest, "absent"])
    assert [task.task_id for task in named] == [oldest, "t1"]


async def test_history_comes_in_chunks(store: TaskStore, reader: TaskReader, owner: Connection, user: User) -> None:
    await _created(store, user, 1)
    for _ in range(3):
        await owner.execute(
            """insert into image_generations (task_id, user_id, prompt)
               select gen_random_uuid(), $1, 'x' from generate_series(1, $2) n""",
            user.id,
            HISTORY_CHUNK // 2,
        )
    chunk = await reader.all_since(user.claims, user.id, 1)
    assert [c.seq for c in chunk] == list(range(2, HISTORY_CHUNK + 2))
    rest = await reader.all_since(user.claims, user.id, chunk[-1].seq)
    assert rest[-1].seq == (await reader.overview(user.claims, user.id, [])).seq


# The tick


async def test_the_tick_finds_each_change_once(
    store: TaskStore, reader: TaskReader, owner: Connection, user: User
) -> None:
    before = await reader.now()
    a, b, c = await _created(store, user, 3)
    await store.report(b, Report(attempt=1, progress=5))
    now, recent, _ = await reader.changed_since(before)
    assert {(r.task_id, r.version, r.seq, r.user_id) for r in recent} == {
        (a, 1, 1, user.id),
        (b, 2, 4, user.id),
        (c, 1, 3, user.id),
    }
    _, recent, _ = await reader.changed_since(now)
    assert recent == []
    # A tick that failed looks from where the last one succeeded.
    assert len((await reader.changed_since(before))[1]) == 3
    # The log of a cluster that counted further, restored into this one, is no news.
    await owner.execute("update task_events set xact = '9999999999'")
    assert (await reader.changed_since(before))[1] == []


async def test_a_change_is_found_however_long_its_transaction_lasted(
    database: Database, store: TaskStore, reader: TaskReader, owner: Connection, user: User
) -> None:
    """Neither its time nor its number tells: others began later and were committed, seen and passed meanwhile."""
    slow, quick = await _created(store, user, 2)
    told: list[str] = []
    listener = await asyncpg.connect(database.url)
    await listener.add_listener("taskbeam", lambda *notice: told.append(str(notice[-1])))
    snapshot = await reader.now()
    other = User()
    async with owner.transaction():
        await owner.execute("update image_generations set status = 'processing' where task_id = $1", slow)
        await owner.execute("insert into image_generations (task_id, user_id, prompt) values ('new', $1, 'x')", user.id)
        await owner.execute("update task_events set at = at - interval '1 hour'")
        for _ in range(3):
            busy = (await store.create(other.claims, other.id, "x", b"{}")).task_id
            snapshot, recent, _ = await reader.changed_since(snapshot)
            assert [r.task_id for r in recent] == [busy]
    snapshot, recent, _ = await reader.changed_since(snapshot)
    assert {(r.task_id, r.version, r.seq) for r in recent} == {(slow, 2, 3), ("new", 1, 4)}
    assert (await reader.changed_since(snapshot))[1] == []
    for _ in range(100):
        if len(told) == 2:
            break
        await asyncio.sleep(0.01)
    assert sorted(told) == sorted([f"{slow} 2", "new 1"])
    recent = await reader.newest([notice.split()[0] for notice in told])
    assert {(r.task_id, r.version, r.seq) for r in recent} == {(slow, 2, 3), ("new", 1, 4)}
    assert quick not in {r.task_id for r in recent}
    await listener.close()


async def test_what_we_make_ourselves_is_not_announced_twice(
    database: Database, store: TaskStore, owner: Connection, user: User
) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    listener = await asyncpg.connect(database.url)
    await listener.add_listener("taskbeam", lambda *notice: told.put_nowait(str(notice[-1])))
    (task_id,) = await _created(store, user, 1)
    await store.report(task_id, Report(attempt=1, progress=5))
    await owner.execute("select pg_notify('taskbeam', 'the first')")
    assert await asyncio.wait_for(told.get(), 5) == "the first"
    await listener.close()


async def test_missed_is_what_each_follower_lacks(store: TaskStore, reader: TaskReader, user: User) -> None:
    a, b = await _created(store, user, 2)
    for task_id in (a, b):
        await store.report(task_id, Report(attempt=1, progress=5))
        await store.report(task_id, Report(attempt=1, progress=6))
    await store.complete(a, Complete(attempt=1, result="/results/a"))
    missed = await reader.missed({a: 1, b: 2, "absent": 0})
    assert sorted((c.task_id, c.version) for c in missed) == sorted([(a, 2), (a, 4), (b, 3)])


async def test_typical_seconds_is_the_median_of_what_completed(
    store: TaskStore, reader: TaskReader, owner: Connection, user: User
) -> None:
    assert await reader.typical_seconds() is None
    made = await _created(store, user, 4)
    for task_id, seconds in zip(made[:3], (10, 20, 60), strict=True):
        await owner.execute(
            "update image_generations set created_at = now() - $2 * interval '1 s' where task_id = $1", task_id, seconds
        )
        await store.complete(task_id, Complete(attempt=1, result="/results/a"))
    await store.fail(made[3], Fail(attempt=1, error="x", error_code="y"))
    typical = await reader.typical_seconds()
    assert typical is not None
    assert 20 <= typical < 21


async def test_a_failure_that_a_retry_has_superseded_is_not_told(
    store: TaskStore, reader: TaskReader, owner: Connection, user: User
) -> None:
    again, final = [(await store.create(user.claims, user.id, "a boat", b"{}")).task_id for _ in range(2)]
    for task_id in (again, final):
        await store.fail(task_id, Fail(attempt=1, error="no", error_code="generator_error"))
    await owner.execute("update image_generations set status = 'pending' where task_id = $1", again)
    told = [(change.task_id, change.status) for change in await reader.all_since(user.claims, user.id, 0)]
    assert told == [(again, "pending"), (final, "pending"), (final, "failed"), (again, "pending")]
