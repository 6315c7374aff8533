"""What comes in together is committed together, and to each of it happens what would have happened to it alone."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import asyncpg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from server.db import UNAVAILABLE, Pool, close_pool, open_pool
from server.settings import Settings
from server.tasks.ledger import Said
from server.tasks.snapshot import TaskChange
from server.tasks.state import Complete, Fail, Report
from server.tasks.store import NoSuchTask, TaskStore
from tests.conftest import Connection
from tests.deployment import Database
from tests.tasks.conftest import User, signed, store_on

END = Complete(attempt=1, result="/results/a")


async def begin(store: TaskStore, user: User, count: int) -> list[str]:
    return [(await store.create(user.claims, user.id, "a boat", b"{}")).task_id for _ in range(count)]


def step(progress: int) -> Report:
    return Report(attempt=1, progress=progress)


@pytest.fixture
async def hasty(database: Database, owner: Connection, settings: Settings) -> AsyncIterator[list[Pool]]:
    """Two pools, as two processes have them, that do not wait for the disk: for tests of many rounds."""
    await owner.execute(f"alter database {database.name} set synchronous_commit = off")
    pools = [await open_pool(settings, application="test") for _ in range(2)]
    yield pools
    for pool in pools:
        await close_pool(pool)


async def test_changes_that_come_at_once_are_one_transaction(
    store: TaskStore, published: list[TaskChange], owner: Connection
) -> None:
    tasks = [task for user in (User(), User()) for task in await begin(store, user, 5)]
    kinds = [store.report(tasks[0], step(5)), store.fail(tasks[1], Fail(attempt=1, error="no", error_code="odd"))]
    outcomes = await asyncio.gather(*kinds, *(store.complete(task, END) for task in tasks[2:]))
    assert outcomes == ["applied"] * 10
    assert await owner.fetchval("select count(distinct xact) from task_events where version = 2") == 1
    assert sorted(change.task_id for change in published if change.version == 2) == sorted(tasks)
    assert await owner.fetchval("select array_agg(status::text order by status::text) from image_generations") == [
        *["completed"] * 8,
        "failed",
        "processing",
    ]


async def test_three_changes_of_one_task_go_one_after_the_other(
    store: TaskStore, published: list[TaskChange], user: User
) -> None:
    task, other = await begin(store, user, 2)
    writes = [store.report(task, step(n)) for n in (10, 20, 30)]
    assert await asyncio.gather(*writes, store.report(other, step(1))) == ["applied"] * 4
    assert [change.version for change in published if change.task_id == task] == [1, 2, 3, 4]


async def test_processing_and_completed_in_both_orders(store: TaskStore, user: User, owner: Connection) -> None:
    first, second = await begin(store, user, 2)
    outcomes = await asyncio.gather(
        store.report(first, step(10)),
        store.complete(first, END),
        store.complete(second, END),
        store.report(second, step(10)),
    )
    assert list(outcomes) == ["applied", "applied", "applied", "stale"]
    versions = await owner.fetch("select version from image_generations order by version")
    assert [row["version"] for row in versions] == [2, 3]


async def test_an_id_that_counts_once_counts_once_in_a_batch(store: TaskStore, user: User) -> None:
    tasks = await begin(store, user, 3)
    outcomes = await asyncio.gather(*(store.complete(task, END, signed("same")) for task in tasks))
    assert outcomes == ["applied", "duplicate", "duplicate"]


async def test_two_processes_with_crossed_batches(hasty: list[Pool], owner: Connection) -> None:
    """200 rounds, in which each waits for the other: no deadlock comes through, and no version is missing."""
    published: list[TaskChange] = []
    one, other = stores = [store_on(pool, published) for pool in hasty]
    tasks = [task for user in (User(), User(), User()) for task in await begin(one, user, 2)]
    for n in range(100):
        outcomes = await asyncio.gather(
            *(stores[n % 2].report(task, Report(attempt=1, message=f"{n} there")) for task in tasks),
            *(other.report(task, Report(attempt=1, message=f"{n} back")) for task in reversed(tasks)),
            *(one.report(task, Report(attempt=1, message=f"{n} again")) for task in reversed(tasks)),
        )
        assert outcomes == ["applied"] * 18
    events = await owner.fetch("select task_id, version from task_events order by task_id, version")
    assert [row["version"] for row in events] == [*range(1, 302)] * 6
    assert sorted((change.task_id, change.version) for change in published) == [tuple(row) for row in events]
    numbers = await owner.fetch("select owner_seq from task_events order by user_id, owner_seq")
    assert [row["owner_seq"] for row in numbers] == [*range(1, 603)] * 3


async def test_a_bad_row_fails_alone(store: TaskStore, user: User, owner: Connection) -> None:
    tasks = await begin(store, user, 9)
    await owner.execute("alter table image_generations add check (result <> '/no')")
    results = ["/a", "/b", "\ud800", "/c", "/no", "/d", "/e", "/no", "/f"]
    outcomes = await asyncio.gather(
        *(
            store.complete(task, Complete(attempt=1, result=result), signed(task))
            for task, result in zip(tasks, results, strict=True)
        ),
        store.complete("absent", END),
        return_exceptions=True,
    )
    assert [outcome if isinstance(outcome, str) else type(outcome) for outcome in outcomes] == [
        *["applied", "applied", asyncpg.DataError, "applied", asyncpg.CheckViolationError],
        *["applied", "applied", asyncpg.CheckViolationError, "applied", NoSuchTask],
    ]
    assert outcomes[4] is not outcomes[7]
    assert await owner.fetchval("select count(*) from task_deliveries") == 6
    assert await owner.fetchval("select count(*) from taskbeam.callbacks_seen") == 6


async def test_who_goes_away_takes_nothing_with_him(
    store: TaskStore, published: list[TaskChange], user: User, owner: Connection
) -> None:
    gone, queued, stays = await begin(store, user, 3)
    async with owner.transaction():
        await owner.execute("lock task_events in exclusive mode")
        writes = [asyncio.create_task(store.report(task, step(1))) for task in (gone, stays)]
        await _waits_for_a_lock(owner)
        late = asyncio.create_task(store.report(queued, step(1)))
        await asyncio.sleep(0)
        writes[0].cancel()
        late.cancel()
        await asyncio.wait([writes[0], late])
    assert await writes[1] == "applied"
    assert await store.report(queued, step(2)) == "applied"  # the one before was never begun
    assert sorted(c.task_id for c in published if c.version == 2) == sorted([gone, queued, stays])
    assert await owner.fetchval("select max(version) from image_generations") == 2


async def test_postgres_goes_away_in_the_middle(store: TaskStore, user: User, owner: Connection) -> None:
    tasks = await begin(store, user, 4)
    async with owner.transaction():
        await owner.execute("lock task_deliveries in exclusive mode")
        writes = [asyncio.create_task(store.complete(task, END, signed(task))) for task in tasks]
        await owner.execute("select pg_terminate_backend($1)", await _waits_for_a_lock(owner))
        told = await asyncio.gather(*writes, return_exceptions=True)
    assert all(isinstance(error, UNAVAILABLE) for error in told)
    assert len({id(error) for error in told}) == 4
    for table in ("task_deliveries", "taskbeam.callbacks_seen", "task_events where version > 1"):
        assert await owner.fetchval(f"select count(*) from {table}") == 0, table  # noqa: S608
    assert await asyncio.gather(*(store.complete(task, END, signed(task)) for task in tasks)) == ["applied"] * 4


async def _waits_for_a_lock(owner: Connection) -> int:
    """The process of Postgres that does."""
    async with asyncio.timeout(5):
        while not (pid := await owner.fetchval("select pid from pg_locks where not granted")):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return int(pid)


@pytest.mark.parametrize("lock", ["taskbeam.owners where user_id = $1", "image_generations where user_id = $1"])
async def test_a_row_that_is_locked_for_long_holds_up_nobody_else(
    store: TaskStore, user: User, owner: Connection, lock: str
) -> None:
    stranger = User()
    (mine,), (theirs,) = await begin(store, user, 1), await begin(store, stranger, 1)
    async with owner.transaction():
        await owner.execute(f"select from {lock} for update", user.id)
        held = [asyncio.create_task(store.report(mine, step(n))) for n in (1, 2)]
        async with asyncio.timeout(2):
            for n in range(5):
                assert await store.report(theirs, step(n)) == "applied"
            await _waits_for_a_lock(owner)
            assert await store.report(theirs, step(9)) == "applied"
        assert not any(write.done() for write in held)
    assert await asyncio.gather(*held) == ["applied"] * 2


async def test_a_user_without_a_log_holds_up_nothing(store: TaskStore, owner: Connection) -> None:
    await owner.execute("alter table image_generations alter user_id drop not null")
    await owner.execute("insert into image_generations (task_id, prompt) values ('nobody', 'x')")
    async with asyncio.timeout(2):
        assert await store.report("nobody", step(1)) == "applied"


async def test_no_more_wait_than_may(store: TaskStore, user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.tasks.commits.WAITING_MAX", 3)
    (task,) = await begin(store, user, 1)
    told = await asyncio.gather(*(store.report(task, step(n)) for n in range(5)), return_exceptions=True)
    assert [type(one) for one in told] == [str] * 3 + [TimeoutError] * 2
    assert await store.report(task, step(9)) == "applied"


@pytest.mark.parametrize("batch", [1, 3])
async def test_more_than_a_batch_takes(
    store: TaskStore, user: User, owner: Connection, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr("server.tasks.commits.BATCH_MAX", batch)
    tasks = await begin(store, user, 7)
    assert await asyncio.gather(*(store.report(task, step(1)) for task in tasks)) == ["applied"] * 7
    assert await owner.fetchval("select count(distinct xact) from task_events where version = 2") == -(-7 // batch)


# Together as one by one

changes = st.one_of(
    st.builds(
        Report,
        attempt=st.sampled_from([1, 1, 1, 2]),
        delivery=st.sampled_from([None, 1, 2]),
        progress=st.sampled_from([None, 10, 50]),
        message=st.sampled_from([None, "sketch"]),
    ),
    st.builds(Complete, attempt=st.sampled_from([1, 1, 2]), result=st.sampled_from(["/results/a", "/results/b"])),
    st.builds(Fail, attempt=st.just(1), error=st.sampled_from(["no", "never"]), error_code=st.just("odd")),
)
said = st.one_of(
    st.none(),
    st.builds(Said, kind=st.just("callback"), jti=st.sampled_from("abc"), delivery=st.sampled_from([None, 2])),
)
words = st.lists(st.tuples(st.integers(0, 2), changes, said), min_size=4, max_size=14)
SEEN = {
    "row": """select status, attempt, delivery, progress, message, result, error, version, status_version,
                     began_at is null as unbegun, deadline_at - created_at < interval '1 h' as soon
                from image_generations where task_id = $1""",
    "log": """select status, attempt, delivery, progress, message, result, error, version, status_version
                from task_events where task_id = $1 order by version""",
    "ledger": "select outcome, attempt, delivery, kind, result from task_deliveries where task_id = $1 order by at",
}


@given(sequence=words)
@examples(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_together_as_one_by_one(
    hasty: list[Pool], owner: Connection, sequence: Sequence[tuple[int, Report | Complete | Fail, Said | None]]
) -> None:
    user = User()
    store = store_on(hasty[0], [])
    alike = [await begin(store, user, 3) for _ in range(2)]

    async def say(task: str, change: Report | Complete | Fail, source: Said | None) -> str:
        if source is not None:  # of this task alone
            source = Said(kind=source.kind, jti=f"{task} {source.jti}", delivery=source.delivery)
        if isinstance(change, Report):
            return await store.report(task, change, source)
        if isinstance(change, Complete):
            return await store.complete(task, change, source)
        return await store.fail(task, change, source)

    alone = [await say(alike[0][n], change, source) for n, change, source in sequence]
    together = await asyncio.gather(*(say(alike[1][n], change, source) for n, change, source in sequence))
    assert together == alone
    for left, right in zip(*alike, strict=True):
        for name, query in SEEN.items():
            assert await owner.fetch(query, left) == await owner.fetch(query, right), name
