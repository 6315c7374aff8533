"""The store against real Postgres: the same rules as the pure state machine, and nothing half done."""

import asyncio
import random
from typing import Any

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.db import Pool
from server.tasks.snapshot import TaskChange
from server.tasks.state import Change, Complete, Fail, Report, Retry, State, advance
from server.tasks.store import NoSuchTask, ParamsTooLarge, TaskStore
from tests.conftest import Connection
from tests.tasks.conftest import User, signed, store_on

LOGGED = [name for name in State.__struct_fields__ if name != "preview"]

# Small domains, so that changes meet: repeated, crossed, of an attempt long over.
attempts = st.sampled_from([0, 0, 0, 0, 0, 0, -1, 1])
words = st.sampled_from([None, "sketch", "details"])
reports = st.builds(
    Report,
    attempt=attempts,
    delivery=st.sampled_from([1, 1, 1, 2, 3]),
    progress=st.sampled_from([None, 0, 10, 50, 100]),
    message=words,
    preview=words,
    step=st.sampled_from([None, None, 1, 2]),
    steps=st.sampled_from([None, 2]),
)
completes = st.builds(Complete, attempt=attempts, result=st.sampled_from(["/results/a", "/results/b"]))
fails = st.builds(
    Fail,
    attempt=attempts,
    error=st.sampled_from(["no", "never"]),
    error_code=st.sampled_from(["timeout", "generator_error"]),
    cancelled=st.booleans(),
)
retries = st.builds(Retry, attempt=attempts)
kinds = st.sampled_from([*[reports] * 8, completes, fails, retries])  # one_of() would forget the weights
changes = st.lists(kinds.flatmap(lambda kind: kind), min_size=8, max_size=20)


async def _apply(store: TaskStore, owner: Connection, task_id: str, change: Change) -> str:
    match change:
        case Report():
            return await store.report(task_id, change)
        case Complete():
            return await store.complete(task_id, change)
        case Fail():
            return await store.fail(task_id, change)
        case Retry(attempt=attempt):  # by somebody who knows nothing of attempts and versions
            done = await owner.execute(
                """update image_generations set status = 'pending'
                    where task_id = $1 and status = 'failed' and attempt = $2""",
                task_id,
                attempt,
            )
            return "applied" if done == "UPDATE 1" else "stale"


async def row_of(connection: Connection, task_id: str) -> State:
    row = await connection.fetchrow("select *, status::text from image_generations where task_id = $1", task_id)
    assert row is not None
    return msgspec.convert({name: row[name] for name in State.__struct_fields__}, State)


async def _log(connection: Connection, task_id: str) -> list[dict[str, Any]]:
    rows = await connection.fetch("select * from task_events where task_id = $1 order by version", task_id)
    return [dict(row) for row in rows]


@given(sequence=changes)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_rows_follow_the_pure_state_machine(
    pool: Pool, owner: Connection, user: User, sequence: list[Change]
) -> None:
    await _compare(pool, owner, user, sequence)


async def test_rows_follow_it_through_long_histories(pool: Pool, owner: Connection, user: User) -> None:
    """The same, evenly spread: what is found by minimal examples is not always what happens in life."""
    for seed in range(40):
        order = random.Random(seed)
        words = [None, "sketch", "details"]
        sequence: list[Change] = []
        for _ in range(20):
            attempt = order.choice([0, 0, 0, 0, 0, 0, -1, 1])
            kind = order.randrange(12)
            if kind == 0:
                sequence.append(Complete(attempt=attempt, result=order.choice(["/results/a", "/results/b"])))
            elif kind == 1:
                sequence.append(Fail(attempt=attempt, error="no", error_code="odd", cancelled=order.random() < 0.5))
            elif kind == 2:
                sequence.append(Retry(attempt=attempt))
            else:
                sequence.append(
                    Report(
                        attempt=attempt,
                        delivery=order.choice([1, 1, 2, 2, 3]),
                        progress=order.choice([None, 0, 10, 50, 100]),
                        message=order.choice(words),
                        preview=order.choice(words),
                        step=order.choice([None, 1, 2]),
                        steps=order.choice([None, 2]),
                    )
                )
        await _compare(pool, owner, user, sequence)


async def _compare(pool: Pool, owner: Connection, user: User, sequence: list[Change]) -> None:
    """Apply the changes to a row and to a state; `attempt` of each is counted from the one the task is at."""
    published: list[TaskChange] = []
    store = store_on(pool, published)
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    states = [State()]
    for relative in sequence:
        change = msgspec.structs.replace(relative, attempt=states[-1].attempt + relative.attempt)
        after = advance(states[-1], change)
        outcome = await _apply(store, owner, task_id, change)
        assert outcome == ("applied" if isinstance(after, State) else after)
        if isinstance(after, State):
            states.append(after)
        assert await row_of(owner, task_id) == states[-1]

    # Each event is the row as it was at that version, and no version is missing.
    log = await _log(owner, task_id)
    assert [{name: event[name] for name in LOGGED} for event in log] == [
        {name: getattr(state, name) for name in LOGGED} for state in states
    ]
    assert [event["version"] for event in log] == list(range(1, len(states) + 1))
    # What the store made it also handed on, in order; the retries are another's.
    foreign = {s.version for s, before in zip(states[1:], states, strict=False) if s.attempt > before.attempt}
    assert [c.version for c in published] == [s.version for s in states if s.version not in foreign]


async def test_what_is_published_is_the_snapshot_of_that_version(
    store: TaskStore, published: list[TaskChange], user: User
) -> None:
    created = await store.create(user.claims, user.id, "a boat", b'{"size":[512,512]}')
    await store.report(created.task_id, Report(attempt=1, progress=40, message="sketch", preview="data:,x"))
    await store.complete(created.task_id, Complete(attempt=1, result="/results/a"))
    bodies = [msgspec.json.decode(change.body) for change in published]
    assert [(b["version"], b["status"], b["progress"], b["preview"], b["result"]) for b in bodies] == [
        (1, "pending", None, None, None),
        (2, "processing", 40, "data:,x", None),
        (3, "completed", 100, None, "/results/a"),
    ]
    assert [change.seq for change in published] == [1, 2, 3]
    assert {change.user_id for change in published} == {user.id}
    assert bodies[0]["params"] == {"size": [512, 512]}


async def test_many_writers_of_one_task(store: TaskStore, owner: Connection, user: User) -> None:
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    writers = [store.report(task_id, Report(attempt=1, progress=n)) for n in range(30)]
    writers[20:20] = [store.complete(task_id, Complete(attempt=1, result=f"/results/{n}")) for n in range(5)]
    writers[22:22] = [store.fail(task_id, Fail(attempt=1, error=f"{n}", error_code="odd")) for n in range(5)]
    outcomes = await asyncio.gather(*writers)
    log = await _log(owner, task_id)
    assert [event["version"] for event in log] == list(range(1, outcomes.count("applied") + 2))
    assert [event["owner_seq"] for event in log] == list(range(1, len(log) + 1))
    ends = [event["version"] for event in log if event["status"] in ("completed", "failed")]
    assert ends == [len(log)]  # one, the last


async def test_create_is_one_transaction(
    store: TaskStore, published: list[TaskChange], owner: Connection, user: User
) -> None:
    await owner.execute(
        """create function refuse() returns trigger language plpgsql as 'begin raise exception ''full''; end';
           create trigger refuse before insert on taskbeam.dispatches for each row execute function refuse()"""
    )
    with pytest.raises(asyncpg.RaiseError, match="full"):
        await store.create(user.claims, user.id, "a boat", b"{}")
    for table in ("image_generations", "task_events", "taskbeam.owners", "taskbeam.dispatches", "auth.users"):
        assert await owner.fetchval(f"select count(*) from {table}") == 0, table  # noqa: S608
    assert published == []

    await owner.execute("drop trigger refuse on taskbeam.dispatches")
    change = await store.create(user.claims, user.id, "a boat", b"{}")
    assert await owner.fetchval("select task_id from taskbeam.dispatches where attempt = 1") == change.task_id
    assert (change.version, change.seq) == (1, 1)


async def test_numbers_that_grow_when_written_out_are_refused(store: TaskStore, owner: Connection, user: User) -> None:
    with pytest.raises(ParamsTooLarge):
        await store.create(user.claims, user.id, "a boat", b'{"a":[' + b",".join([b"1e300"] * 400) + b"]}")
    # A body as large as a body may be is taken.
    full = b'{"a":[' + b",".join([b"1"] * 32_700) + b"]}"
    await store.create(user.claims, user.id, "a boat", full)
    assert await owner.fetchval("select count(*) from image_generations") == 1


async def test_a_retry_begins_anew(store: TaskStore, owner: Connection, user: User) -> None:
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    await store.report(task_id, Report(attempt=1, delivery=2, progress=40, message="m", preview="p", step=1, steps=2))
    await store.fail(task_id, Fail(attempt=1, error="stopped", error_code="cancelled", cancelled=True))
    assert await store.is_cancelled(task_id, 1)
    await owner.execute("update image_generations set status = 'pending' where task_id = $1", task_id)
    assert await row_of(owner, task_id) == State(attempt=2, version=4, status_version=4)
    assert await owner.fetchval("select deadline_at > now() from image_generations where task_id = $1", task_id)
    # The run before is over for good; its failure is history.
    assert await store.complete(task_id, Complete(attempt=1, result="/results/late")) == "stale"
    assert await store.is_cancelled(task_id, 1)
    assert not await store.is_cancelled(task_id, 2)
    assert await store.complete(task_id, Complete(attempt=2, result="/results/b")) == "applied"
    statuses = [(event["attempt"], event["status"], event["error"]) for event in await _log(owner, task_id)]
    assert statuses == [
        (1, "pending", None),
        (1, "processing", None),
        (1, "failed", "stopped"),
        (2, "pending", None),
        (2, "completed", None),
    ]


async def test_an_unknown_task(store: TaskStore) -> None:
    with pytest.raises(NoSuchTask):
        await store.report("absent", Report(attempt=1))
    with pytest.raises(NoSuchTask):
        await store.complete("absent", Complete(attempt=1, result="/results/a"))
    assert await store.is_cancelled("absent", 1)


# A signed callback counts once.


async def test_a_callback_that_is_played_again_changes_nothing(store: TaskStore, owner: Connection, user: User) -> None:
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    assert await store.report(task_id, Report(attempt=1, progress=10), signed("one")) == "applied"
    assert await store.report(task_id, Report(attempt=1, progress=90), signed("one")) == "duplicate"
    assert await store.fail(task_id, Fail(attempt=1, error="x", error_code="y"), signed("one")) == "duplicate"
    assert await store.complete(task_id, Complete(attempt=1, result="/results/a"), signed("one")) == "duplicate"
    assert (await row_of(owner, task_id)).progress == 10
    assert await store.complete(task_id, Complete(attempt=1, result="/results/a"), signed("two")) == "applied"
    assert await owner.fetchval("select count(*) from taskbeam.callbacks_seen") == 2


async def test_a_callback_that_is_played_twice_at_the_same_time(
    store: TaskStore, owner: Connection, user: User
) -> None:
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    for n in range(1, 11):
        outcomes = await asyncio.gather(
            *(store.report(task_id, Report(attempt=1, delivery=n + d), signed(f"jti{n}")) for d in (1, 1, 1))
        )
        assert sorted(outcomes) == ["applied", "duplicate", "duplicate"]
    assert (await row_of(owner, task_id)).version == 11


async def test_a_callback_that_had_to_wait_for_the_row_counts_once_too(
    store: TaskStore, pool: Pool, owner: Connection, user: User
) -> None:
    """It came to two processes. After the wait the row is judged as it is then, and what was seen meanwhile counts."""
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    async with owner.transaction():
        await owner.execute("update image_generations set message = 'held' where task_id = $1", task_id)
        waiting = [
            asyncio.create_task(one.complete(task_id, Complete(attempt=1, result="/results/a"), signed("one")))
            for one in (store, store_on(pool, []))
        ]
        while await owner.fetchval("select count(*) from pg_stat_activity where wait_event_type = 'Lock'") < 2:
            await owner.execute("select pg_stat_clear_snapshot()")
            await asyncio.sleep(0.01)
    assert sorted(await asyncio.gather(*waiting)) == ["applied", "duplicate"]
    assert (await row_of(owner, task_id)).version == 3


async def test_progress_needs_no_new_index_entries(store: TaskStore, owner: Connection, user: User) -> None:
    """Most updates are progress: they must stay on their page (HOT), or every index grows with each of them."""
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    await store.report(task_id, Report(attempt=1, progress=0))
    statement = """select n_tup_upd - n_tup_hot_upd from pg_stat_xact_user_tables where relname = 'image_generations'"""
    async with owner.transaction():
        for n in range(1, 6):
            await owner.execute(
                """update image_generations set progress = $2, version = version + 1, updated_at = clock_timestamp()
                    where task_id = $1""",
                task_id,
                n,
            )
        assert await owner.fetchval(statement) == 0


async def test_a_report_that_names_no_delivery_is_of_the_current_one(
    store: TaskStore, owner: Connection, user: User
) -> None:
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    await store.report(task_id, Report(attempt=1, delivery=3))
    assert await store.report(task_id, Report(attempt=1, progress=20)) == "applied"
    row = await row_of(owner, task_id)
    assert (row.delivery, row.progress) == (3, 20)
