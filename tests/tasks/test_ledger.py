"""The ledger: each verified word once, with what became of it, for its owner; a late good result is not lost."""

import random

import asyncpg
import pytest

from server.db import Pool, acting_as
from server.tasks.ledger import DELIVERIES_NOTED_MAX, Said
from server.tasks.reading import TaskReader
from server.tasks.state import Complete, Fail, Report
from server.tasks.store import NoSuchTask, TaskStore
from tests.conftest import Connection
from tests.tasks.conftest import User, signed

LEDGER = "select kind, outcome, attempt, delivery, status, result from public.task_deliveries order by at"


@pytest.fixture
async def task_id(store: TaskStore, user: User) -> str:
    return (await store.create(user.claims, user.id, "a boat", b"{}")).task_id


async def ledger(owner: Connection) -> list[tuple[object, ...]]:
    return [tuple(row) for row in await owner.fetch(LEDGER)]


async def test_what_is_noted(store: TaskStore, task_id: str, owner: Connection) -> None:
    first = Said(kind="callback", jti="1", delivery=1, status=500)
    assert await store.report(task_id, Report(attempt=1, delivery=1, message="again"), first) == "applied"
    assert await store.report(task_id, Report(attempt=1, delivery=1, message="again"), first) == "duplicate"
    assert await store.report(task_id, Report(attempt=1, delivery=2, progress=50)) == "applied"  # mere progress
    done = Complete(attempt=1, result="/results/a")
    assert await store.complete(task_id, done, Said(kind="webhook", jti="2")) == "applied"
    assert await store.complete(task_id, done, Said(kind="report", delivery=2)) == "duplicate"
    late = Fail(attempt=1, error="x", error_code="y")
    assert await store.fail(task_id, late, Said(kind="callback", jti="3", delivery=1, status=0)) == "stale"
    assert await ledger(owner) == [
        ("callback", "applied", 1, 1, 500, None),
        ("callback", "duplicate", 1, 1, 500, None),
        ("webhook", "applied", 1, 2, None, None),
        ("report", "duplicate", 1, 2, None, None),
        ("callback", "stale", 1, 1, 0, None),
    ]


async def test_nothing_of_an_unknown_task(store: TaskStore, owner: Connection) -> None:
    with pytest.raises(NoSuchTask):
        await store.complete("absent", Complete(attempt=1, result="/r"), signed("1"))
    assert await ledger(owner) == []


@pytest.mark.parametrize("seed", range(4))
async def test_it_says_what_the_caller_is_told(store: TaskStore, task_id: str, owner: Connection, seed: int) -> None:
    chance = random.Random(seed)
    told = []
    for _ in range(30):
        attempt, said = chance.choice([1, 1, 1, 2]), signed(str(chance.randrange(20)))
        result = f"/results/{chance.randrange(2)}"
        match chance.randrange(4):
            case 0:
                told.append(await store.complete(task_id, Complete(attempt=attempt, result=result), said))
            case 1:
                told.append(await store.fail(task_id, Fail(attempt=attempt, error=result, error_code="x"), said))
            case 2:
                report = Report(attempt=attempt, progress=chance.randrange(100))
                told.append(await store.report(task_id, report, said))
            case _:
                report = Report(attempt=attempt, delivery=chance.randrange(1, 4))
                told.append(await store.report(task_id, report, said))
    assert [row[1] for row in await ledger(owner)] == told
    assert len(set(told)) == 3


async def test_written_with_the_change_or_not_at_all(store: TaskStore, task_id: str, owner: Connection) -> None:
    await owner.execute("alter table image_generations add check (result <> '/no')")
    with pytest.raises(asyncpg.CheckViolationError):
        await store.complete(task_id, Complete(attempt=1, result="/no"), signed("1"))
    assert await ledger(owner) == []
    await owner.execute("alter table task_deliveries add check (kind <> 'report')")
    with pytest.raises(asyncpg.CheckViolationError):
        await store.complete(task_id, Complete(attempt=1, result="/yes"), Said(kind="report"))
    assert await owner.fetchval("select status::text from image_generations") == "pending"


async def test_a_good_result_that_is_too_late_is_kept(store: TaskStore, task_id: str, owner: Connection) -> None:
    """Once for each attempt, while the task has none; a terminal state stays what it is."""
    await store.fail(task_id, Fail(attempt=1, error="timeout", error_code="timeout"))
    assert await store.standing(task_id, 1) == "late"
    for n in range(3):
        assert await store.complete(task_id, Complete(attempt=1, result=f"/late/{n}"), signed(str(n))) == "stale"
    assert await store.standing(task_id, 1) == "over"
    assert await store.complete(task_id, Complete(attempt=2, result="/of/no/run"), signed("of no run")) == "stale"
    await owner.execute("update image_generations set status = 'pending' where task_id = $1", task_id)
    assert await store.standing(task_id, 2) == "open"
    await store.fail(task_id, Fail(attempt=2, error="again", error_code="timeout"))
    assert await store.complete(task_id, Complete(attempt=2, result="/late/2nd"), signed("2nd")) == "stale"
    results = [(row[2], row[5]) for row in await ledger(owner)]
    assert results == [(1, "/late/0"), (1, None), (1, None), (2, None), (2, "/late/2nd")]
    assert await store.names(task_id, "/late/0")
    assert not await store.names(task_id, "/late/1")
    assert await owner.fetchval("select status::text from image_generations") == "failed"


async def test_not_for_a_task_that_has_its_result(store: TaskStore, task_id: str, owner: Connection) -> None:
    await store.complete(task_id, Complete(attempt=1, result="/first"), signed("1"))
    assert await store.complete(task_id, Complete(attempt=1, result="/second"), signed("2")) == "stale"
    assert [row[5] for row in await ledger(owner)] == [None, None]


async def test_it_is_bounded_but_for_ends(store: TaskStore, task_id: str, owner: Connection) -> None:
    for n in range(DELIVERIES_NOTED_MAX + 20):
        await store.report(task_id, Report(attempt=1, delivery=n + 1), signed(str(n)))
    await store.fail(task_id, Fail(attempt=1, error="x", error_code="y"), signed("end"))
    for n in range(5):
        await store.fail(task_id, Fail(attempt=1, error="other", error_code="y"), signed(f"late {n}"))
    await store.complete(task_id, Complete(attempt=1, result="/late"), signed("good"))
    rows = await ledger(owner)
    assert len(rows) == DELIVERIES_NOTED_MAX + 2
    assert [row[1] for row in rows[-2:]] == ["applied", "stale"]
    assert rows[-1][5] == "/late"


async def test_its_owner_reads_it_and_nobody_else(
    store: TaskStore, reader: TaskReader, pool: Pool, task_id: str, user: User
) -> None:
    assert await reader.deliveries(user.claims, task_id) == []
    await store.complete(task_id, Complete(attempt=1, result="/a"), Said(kind="callback", jti="1", status=200))
    noted = await reader.deliveries(user.claims, task_id)
    assert noted is not None
    assert [(n.kind, n.outcome, n.delivery, n.status) for n in noted] == [("callback", "applied", 1, 200)]
    for claims in (User().claims, '{"role":"authenticated"}'):
        assert await reader.deliveries(claims, task_id) is None
        async with acting_as(pool, claims) as connection:
            assert await connection.fetchval("select count(*) from public.task_deliveries") == 0


async def test_it_goes_with_its_task(store: TaskStore, task_id: str, user: User, owner: Connection) -> None:
    await store.fail(task_id, Fail(attempt=1, error="x", error_code="y"))
    name = "p" * 43 + ".png"
    await store.complete(task_id, Complete(attempt=1, result=f"/results/{name}"), signed("1"))
    assert len(await ledger(owner)) == 1
    await store.delete(user.claims, task_id)
    assert await ledger(owner) == []
    assert await owner.fetchval("select name from taskbeam.discarded_pictures") == name
