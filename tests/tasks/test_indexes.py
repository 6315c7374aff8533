"""An index for every statement: what the processes do all day reads no large table from end to end.

Postgres itself says so: the statements run as they are, and the tables' counters of sequential scans stay at nought.
Seven runs each, because from the sixth on Postgres may take a plan that knows no arguments.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import cast

import asyncpg
import pytest
from qstash import AsyncQStash

from server.db import Pool, acting_as, close_pool, open_pool
from server.dispatch import backlog as dispatcher_backlog
from server.dispatch.finish import Finish
from server.dispatch.history import History
from server.dispatch.lookup import Lookup
from server.dispatch.messages import Messages
from server.dispatch.outbox import Outbox
from server.dispatch.reconciler import Reconciler
from server.dispatch.settle import Settle
from server.metrics import Metrics
from server.retention import Retention
from server.settings import Settings
from server.tasks.access import Access, Whose
from server.tasks.backlog import read_backlog
from server.tasks.pace import Pace
from server.tasks.reading import TaskReader
from server.tasks.state import Complete, Fail, Report
from server.tasks.store import NoSuchTask, TaskStore
from server.upkeep import Upkeep
from tests.conftest import Connection
from tests.tasks.conftest import User, expiry_on, signed, store_on

TASKS = 20_000  # of many_tasks.sql
RUNS = 7
ROWS_MAX = 450  # that one run may read of one table

READ = """
select relname, seq_scan, seq_tup_read + coalesce(idx_tup_fetch, 0) as rows from pg_stat_user_tables
 where relname in ('image_generations', 'task_events', 'owners', 'dispatches', 'users', 'messages', 'deduplications',
                   'deletions', 'task_deliveries')
"""


# What a browser may ask of PostgREST: no column of an index is named, row level security alone picks the rows.
OF_A_BROWSER = [
    "select * from public.image_generations",
    "select * from public.image_generations order by created_at desc limit 20",
    "select count(*) from public.image_generations where status = 'completed'",
    "select * from public.task_events order by owner_seq desc limit 20",
    "select * from public.task_deliveries",
    "select * from public.task_deliveries order by at desc limit 20",
    "select * from taskbeam.changes order by owner_seq desc limit 20",
    "select seq from taskbeam.owners",
]


@pytest.fixture
async def one(settings: Settings, owner: Connection) -> AsyncIterator[Pool]:
    """A pool of one connection, in a database with some thousand tasks."""
    await owner.execute(Path(__file__).with_name("many_tasks.sql").read_text())
    opened = await open_pool(settings, application="test", size=1)
    yield opened
    await close_pool(opened)


async def test_no_statement_reads_a_table_from_end_to_end(
    one: Pool, owner: Connection, settings: Settings, subtests: pytest.Subtests, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = User("00000000-0000-4000-8000-000000000007")
    mine = [f"task_{n}" for n in range(4, TASKS, 4)]
    waiting = [f"task_{n}" for n in range(100, TASKS, 100)]  # none of them overdue
    store: TaskStore = store_on(one, [])
    reader = TaskReader(one, public_url="")
    access = Access(one)
    messages = Messages(one, kept_days=1, dead_letters_kept_days=7)
    history = History(one)
    claims, me = user.claims, user.id
    counter = iter(range(1_000_000))
    snapshot = await reader.now()

    client, metrics = AsyncQStash("none"), Metrics()
    outbox = Outbox(one, store, client, settings, b"secret", metrics)
    expiry = expiry_on(one, store)
    settle = Settle(store, Finish(store, settings.data_dir, b"secret"))
    reconciler = Reconciler(one, store, settle, outbox, Lookup(client), settings, metrics)
    dispatch = cast("asyncpg.Record", {"task_id": waiting[0], "attempt": 1, "resends": 0})
    retention = Retention(one, settings.data_dir, Metrics(), tasks_days=13, events_days=7)
    monkeypatch.setattr("server.retention.TASKS_A_STEP", 50)
    no_ages = Retention(one, settings.data_dir, Metrics(), tasks_days=None, events_days=None)
    upkeep = Upkeep(expiry, reader, Pace(), no_ages, Metrics())

    async def refused() -> None:
        with pytest.raises(NoSuchTask):
            await store.report("absent", Report(attempt=1))

    few = User("00000000-0000-4000-8000-000000000002")  # has ten tasks among these thousands

    async def ask(statement: str) -> None:
        async with acting_as(one, few.claims) as connection:
            await connection.execute("set local enable_bitmapscan = on")  # as PostgREST has it
            assert 0 < len(await connection.fetch(statement)) <= 40

    statements: dict[str, Callable[[], Awaitable[object]]] = {
        "create": lambda: store.create(claims, me, "a boat", b"{}"),
        "report": lambda: store.report(
            waiting[0], Report(attempt=1, progress=next(counter)), signed(f"r{next(counter)}")
        ),
        "complete": lambda: store.complete(waiting[1], Complete(attempt=1, result="/r"), signed(f"c{next(counter)}")),
        "fail": lambda: store.fail(waiting[2 + next(counter)], Fail(attempt=1, error="x", error_code="y")),
        "refused": refused,
        "is cancelled": lambda: store.is_cancelled(waiting[0], 1),
        "expire": expiry.expire,
        "look up": reconciler._take,
        "look up no more": reconciler._clear,
        "look up again": lambda: reconciler._again(dispatch, 1, 0),
        "send a lost one": lambda: reconciler._resend(dispatch),
        "standing": lambda: store.standing(waiting[0], 1),
        "names": lambda: store.names(waiting[0], "/r"),
        "deliveries": lambda: reader.deliveries(claims, mine[0]),
        "since": lambda: reader.since(claims, mine[0], 0),
        "all since": lambda: reader.all_since(claims, me, 1_003_000 - 20),
        "overview": lambda: reader.overview(claims, me, None),
        "overview of some": lambda: reader.overview(claims, me, mine[:20]),
        "may still": lambda: access.sees(claims, mine[0]),
        "whose": lambda: access.standing(Whose(me, None)),
        "page": lambda: reader.page(claims, me, limit=20, cursor=None, status=None),
        "page of one status": lambda: reader.page(claims, me, limit=20, cursor=None, status="failed"),
        "the tick": lambda: reader.changed_since(snapshot),
        "the tick, by name": lambda: reader.newest(mine[:20]),
        "missed": lambda: reader.missed(dict.fromkeys(mine[:50], 1)),
        "typical": reader.typical_seconds,
        "upkeep": lambda: upkeep._turn(0),
        "trim logs": retention._trim_logs,
        "delete old tasks": retention._delete_tasks,
        "backlog": lambda: read_backlog(one),
        "the dispatcher's": lambda: dispatcher_backlog.read_backlog(one),
        "take": lambda: outbox._take(5),
        "sent": lambda: outbox._sent(waiting[0], 1, "msg_77"),
        "send again": lambda: outbox._again(waiting[0], 1, 1, OSError("refused")),
        "claim": lambda: messages.claim(10, 10),
        "renew": lambda: messages.renew([]),
        "expired leases": messages.expired,
        "find": lambda: history.message("msg_77"),
        "dead letters of a message": lambda: history.dead_letters(1, message_id="msg_77"),
        "dead letters for a URL": lambda: history.dead_letters(1, url="http://127.0.0.1:9/"),
        "one dead letter": lambda: history.dead_letters(1, dlq_id="1-1"),
        "dead letters": lambda: history.dead_letters(100),
        "cancel": lambda: messages.cancel(f"msg_{100 * (1 + next(counter) % 100)}"),
    }
    statements |= {statement: partial(ask, statement) for statement in OF_A_BROWSER}
    for name, run in statements.items():
        with subtests.test(name):
            await _reads_little(one, owner, run)


async def _reads_little(one: Pool, owner: Connection, run: Callable[[], Awaitable[object]]) -> None:
    await one.execute("select pg_stat_force_next_flush()")
    await owner.execute("select pg_stat_reset()")
    for _ in range(RUNS):
        await run()
    await one.execute("select pg_stat_force_next_flush()")
    await asyncio.sleep(0)
    for row in await owner.fetch(READ):
        assert row["seq_scan"] == 0, row["relname"]
        assert row["rows"] <= RUNS * ROWS_MAX, row["relname"]
