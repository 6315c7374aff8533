"""Over the image_generations of the app being replaced, with rows as years of polling leave them.

Every row survives, what contradicts itself is settled, and the app's own statements go on working: on Supabase with
its users, and on a plain Postgres where the app kept them elsewhere.
"""

import asyncio
import datetime as dt
from pathlib import Path

import asyncpg
import pytest

from server.migrate import create_login_role, migrate
from server.tasks.reading import TaskReader
from server.tasks.state import Complete
from tests.clusters import Connection, Elsewhere
from tests.conftest import Connection as OwnerConnection
from tests.deployment import Database
from tests.tasks.conftest import User, expiry_on, store_on

ME = User("00000000-0000-4000-8000-000000000001")
LONG_AGO = dt.datetime(2024, 5, 6, 7, 8, 9, tzinfo=dt.UTC)

OLDER = Path(__file__).with_name("older_table.sql").read_text()

# task_id, status, result, error, prompt, and what becomes of status, result and error
ODD_ROWS = {
    "completed-without": ("completed", None, None, "x", ("failed", None, "completed without a result")),
    "completed-empty": ("completed", "", "oops", "x", ("failed", None, "oops")),
    "completed-with-both": ("completed", "https://x/1", "warning", "x", ("completed", "https://x/1", None)),
    "failed-without": ("failed", None, None, "x", ("failed", None, "failed for an unknown reason")),
    "failed-with-both": ("failed", "https://x/2", "no", "x", ("failed", None, "no")),
    "failed-at-length": ("failed", None, "e" * 3000, "x", ("failed", None, "e" * 2000)),
    "pending-with-result": ("pending", "https://x/3", None, "x", ("completed", "https://x/3", None)),
    "pending-with-error": ("pending", None, "gave up", "x", ("failed", None, "gave up")),
    "pending-with-blanks": ("pending", "", "", "x", ("pending", None, None)),
    "no status": (None, None, None, "x", ("pending", None, None)),
    "no status, done": (None, "https://x/4", None, "x", ("completed", "https://x/4", None)),
    "no prompt": ("pending", None, None, None, ("pending", None, None)),
    "empty prompt": ("pending", None, None, "", ("pending", None, None)),
    "long prompt": ("pending", None, None, "p" * 40_000, ("pending", None, None)),
    "odd/id:ü *": ("pending", None, None, "x", ("pending", None, None)),
    "x" * 9000: ("pending", None, None, "x", ("pending", None, None)),
    "picture in the row": (
        "completed",
        "data:," + "r" * 1_100_000,
        None,
        "x",
        ("completed", "data:," + "r" * 1_100_000, None),
    ),
}
INSERT = """
insert into public.image_generations (user_id, task_id, status, result, error, prompt, created_at, updated_at)
values ($1, $2, $3, $4, $5, $6, $7, null)
"""


async def _older(connection: Connection, **options: str) -> None:
    """The older app's table with 1,000 rows, as `connection`; the users are there already."""
    chosen = {
        "labels": "'pending', 'processing', 'completed', 'failed'",
        "text": "text",
        "time": "timestamptz",
    } | options
    await connection.execute(OLDER.format(**chosen))
    when = LONG_AGO.replace(tzinfo=None) if chosen["time"] == "timestamp" else LONG_AGO
    for task_id, (status, result, error, prompt, _) in ODD_ROWS.items():
        await connection.execute(INSERT, ME.id, task_id, status, result, error, prompt, when)
    # Twice the same id, no id, nobody's.
    await connection.execute(INSERT, ME.id, "twice", "pending", None, None, "x", when)
    await connection.execute(INSERT, ME.id, "twice", "completed", "https://x/5", None, "x", when)
    await connection.execute(INSERT, None, None, "pending", None, None, "x", when)


async def _with_user(supabase: Elsewhere) -> None:
    async with supabase.connect(superuser=True) as admin:
        await admin.execute("insert into auth.users (id) values ($1)", ME.id)


async def _migrated(supabase: Elsewhere, **options: str) -> None:
    await _with_user(supabase)
    async with supabase.connect() as postgres:
        await _older(postgres, **options)
    await migrate(supabase.owner_url)
    async with supabase.connect() as postgres:
        await create_login_role(postgres)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"time": "timestamp", "text": "varchar"},
        {"time": "timestamp", "labels": "'queued', 'pending', 'failed', 'completed'"},
    ],
    ids=["text and timestamptz", "varchar and timestamp", "an enum of other values"],
)
async def test_all_rows_survive_and_agree_with_themselves(supabase: Elsewhere, options: dict[str, str]) -> None:
    await _migrated(supabase, **options)
    async with supabase.connect() as postgres:
        assert await postgres.fetchval("select count(*) from image_generations") == 1000
        rows = await postgres.fetch("select *, status::text from image_generations where user_id is not null")
        by_id = {row["task_id"]: row for row in rows}
        assert len(by_id) == 999
        for task_id, (*_, prompt, after) in ODD_ROWS.items():
            row = by_id[task_id]
            assert (row["status"], row["result"], row["error"]) == after, task_id
            assert row["prompt"] == (prompt or "(no prompt)")[:32_000]
            assert row["created_at"] == row["updated_at"] == LONG_AGO  # the trigger of theirs was not asked
        assert by_id["old-1"]["updated_at"] == LONG_AGO + dt.timedelta(seconds=2)
        assert by_id["twice"]["result"] == "https://x/5"
        assert sum(task_id.startswith("twice") for task_id in by_id) == 2
        assert await postgres.fetchval("select task_id from image_generations where user_id is null")

        # All of it holds, of old rows too; what is open has an end.
        constraints = await postgres.fetch(
            "select conname, convalidated from pg_constraint where conrelid = 'image_generations'::regclass "
            "and conname like 'taskbeam%'"
        )
        assert len(constraints) >= 13
        assert [row["conname"] for row in constraints if not row["convalidated"]] == []
        assert not await postgres.fetchval(
            "select bool_or(deadline_at is null) from image_generations where status in ('pending', 'processing')"
        )
        # The log begins with what is there; nobody's rows have none.
        log = await postgres.fetch("select task_id, version, owner_seq, status, at from task_events order by owner_seq")
        assert [row["owner_seq"] for row in log] == list(range(1, 1000))
        assert {row["version"] for row in log} == {1}
        assert {row["task_id"]: (row["status"], row["at"]) for row in log} == {
            task_id: (row["status"], row["updated_at"]) for task_id, row in by_id.items()
        }
        assert await postgres.fetchval("select seq from taskbeam.owners") == 999


async def test_what_is_theirs_is_as_it_was(supabase: Elsewhere) -> None:
    """Policies, triggers, views with their grants; and times are the same instants."""
    views = """select relname, reloptions, relacl::text, pg_get_userbyid(relowner) as owner,
                      pg_get_viewdef(oid) as definition, obj_description(oid) as comment
                 from pg_class where relname in ('gallery', 'newest_picture') order by 1"""
    await _with_user(supabase)
    async with supabase.connect() as postgres:
        await _older(postgres, time="timestamp", text="varchar(4000000)")
        before = await postgres.fetch(views)
        assert [row["reloptions"] for row in before] == [["security_invoker=true"], None]
        await migrate(supabase.owner_url)
        assert await postgres.fetch(views) == before
        policies = await postgres.fetch(
            """select policyname from pg_policies
                where tablename = 'image_generations' and policyname not like 'taskbeam%'"""
        )
        assert len(policies) == 3
        assert await postgres.fetchval("select tgenabled from pg_trigger where tgname = 'update_updated_at'") == b"O"
        assert await postgres.fetchval("select at from newest_picture") == LONG_AGO + dt.timedelta(seconds=980)
        assert await postgres.fetchval("select is_favourite from image_generations where task_id = 'old-1'") is False


async def test_their_statements_go_on_working(supabase: Elsewhere) -> None:
    await _migrated(supabase)
    told: list[str] = []
    async with supabase.pool() as pool, supabase.connect() as listener, supabase.connect(role="service_role") as app:
        await listener.add_listener("taskbeam", lambda *notice: told.append(str(notice[-1])))
        reader = TaskReader(pool, public_url="")
        await app.execute(
            "insert into image_generations (user_id, task_id, prompt) values ($1, 'new', 'a boat')", ME.id
        )
        await app.execute("update image_generations set status = 'processing' where task_id = 'new'")
        await app.execute("update image_generations set status = 'processing' where task_id = 'new'")  # no change
        await app.execute("update image_generations set is_favourite = true where task_id = 'new'")  # not of the task
        await app.execute(
            """update image_generations set status = 'completed', result = 'https://x/y', error = ''
                where task_id = 'new'"""
        )
        await app.execute(
            """insert into image_generations (user_id, task_id, prompt, status, result)
               values ($1, 'made-at-once', 'a boat', 'completed', 'https://x/z')""",
            ME.id,
        )
        changes = (await reader.since(ME.claims, "new", 0)).changes
        assert [(c.version, c.status_version, c.status) for c in changes] == [
            (1, 1, "pending"),
            (2, 2, "processing"),
            (3, 3, "completed"),
        ]
        changes, _ = await reader.since(ME.claims, "made-at-once", 0)
        assert [(c.version, c.status) for c in changes] == [(1, "completed")]
        for _ in range(100):
            if len(told) == 4:
                break
            await asyncio.sleep(0.01)
        assert told == ["new 1", "new 2", "new 3", "made-at-once 1"]
        # A terminal state is final for them too, and a result is never dropped in silence.
        for late in (
            "status = 'failed', error = 'x' where task_id = 'new'",
            "result = 'https://x/other' where task_id = 'new'",
            "result = 'https://x/y' where task_id = 'old-2'",  # pending
        ):
            with pytest.raises(asyncpg.CheckViolationError):
                await app.execute(f"update image_generations set {late}")  # noqa: S608
        # A retry of theirs: nothing of the run before is left.
        await app.execute("update image_generations set status = 'pending' where task_id = 'old-1'")
        row = await app.fetchrow("select attempt, error, version from image_generations where task_id = 'old-1'")
        assert row is not None
        assert tuple(row) == (2, None, 2)


async def test_odd_old_rows_can_still_be_finished(supabase: Elsewhere) -> None:
    """One row that no statement could touch would hold up every statement it is part of: expiry, for one."""
    await _migrated(supabase)
    async with supabase.pool() as pool, supabase.connect(role="service_role") as app:
        store = store_on(pool, [])
        assert await store.complete("odd/id:ü *", Complete(attempt=1, result="/results/a")) == "applied"
        await app.execute("update image_generations set status = 'failed' where task_id = $1", "x" * 9000)
        await app.execute("update image_generations set prompt = 'p' where task_id = 'picture in the row'")
        await app.execute("update image_generations set deadline_at = now() - interval '1 s' where status = 'pending'")
        ended = [await expiry_on(pool, store).expire() for _ in range(4)]
        assert sum(ended) == 245 + 5 + 1 + 1  # old ones, odd ones, the twin, nobody's
        assert (
            await app.fetchval("select count(*) from image_generations where status in ('pending', 'processing')") == 0
        )
        # New ones of the kind are refused.
        with pytest.raises(asyncpg.CheckViolationError):
            await app.execute(
                "insert into image_generations (user_id, task_id, prompt) values ($1, 'odd/id', 'x')", ME.id
            )


async def test_a_browsers_own_session(supabase: Elsewhere) -> None:
    """The app inserts as the signed-in user: pending, of that user, and nothing it was not given."""
    await _migrated(supabase)
    stranger = User()
    async with supabase.connect(role="authenticated") as session:
        await session.execute("select set_config('request.jwt.claims', $1, false)", ME.claims)
        insert = "insert into image_generations (user_id, task_id, prompt{}) values ('{}', '{}', 'a boat'{})"
        await session.execute(insert.format("", ME.id, "a", ""))
        await session.execute(insert.format(", status", ME.id, "b", ", 'pending'"))
        for refused in (
            insert.format("", stranger.id, "c", ""),
            insert.format(", status", ME.id, "c", ", 'processing'"),
            insert.format(", status, result", ME.id, "c", ", 'completed', 'https://x'"),
            "update image_generations set status = 'processing'",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await session.execute(refused)
        assert await session.fetchval("select count(*) from image_generations") == 1001
        await session.execute("select set_config('request.jwt.claims', $1, false)", stranger.claims)
        # Their policy says `using (true)`; ours cannot be outvoted.
        assert await session.fetchval("select count(*) from image_generations") == 0


async def test_the_user_can_go_now(supabase: Elsewhere) -> None:
    await _migrated(supabase)
    async with supabase.connect(superuser=True) as admin:
        await admin.execute("delete from auth.users where id = $1", ME.id)
        assert await admin.fetchval("select count(*) from image_generations") == 1  # nobody's
        assert await admin.fetchval("select count(*) from task_events") == 0


BARE = """
create table image_generations (
  task_id text, user_id uuid, status text, prompt text, result text, error text,
  created_at timestamptz, updated_at timestamptz
);
"""

# Plain Postgres: the app's users are in a table of its own, its processes have a role of their own.

PLAIN = """
create table public.users (id uuid primary key);
insert into public.users values ('00000000-0000-4000-8000-000000000001');
create table public.image_generations (
  task_id varchar(64) primary key,
  user_id uuid not null constraint image_generations_user_id_fkey references public.users (id),
  status varchar(20) not null default 'pending',
  prompt text, result varchar(100), error varchar(100), progress integer, params jsonb,
  created_at timestamptz default timezone('utc', now()), updated_at timestamptz
);
insert into public.image_generations (task_id, user_id, prompt, progress, params)
  select t, u.id, 'x', p, j from public.users u, (values ('a', 400, '[]'::jsonb), ('b', 40, null)) v (t, p, j);
"""


async def test_a_plain_postgres(empty_database: Database) -> None:
    owner: OwnerConnection = await asyncpg.connect(empty_database.owner_url)
    await owner.execute(PLAIN)
    await owner.execute(
        """drop role if exists older_app;
           create role older_app nologin;
           grant select, insert, update on public.image_generations, public.users to older_app"""
    )
    await migrate(empty_database.owner_url)
    assert [tuple(r) for r in await owner.fetch("select progress, params from image_generations order by task_id")] == [
        (None, "{}"),
        (40, "{}"),
    ]
    # Its own role goes on as before, with users we have not heard of.
    newcomer = User()
    await owner.execute("insert into public.users values ($1)", newcomer.id)
    await owner.execute("set role older_app")
    await owner.execute("insert into image_generations (user_id, task_id, prompt) values ($1, 'c', 'x')", newcomer.id)
    await owner.execute(
        "update image_generations set status = 'completed', result = repeat('r', 500) where task_id in ('a', 'c')"
    )
    assert await owner.fetchval("select count(*) from image_generations") == 3
    await owner.execute("reset role")
    log = await owner.fetch("select task_id, version, status, owner_seq from task_events order by task_id, version")
    assert [tuple(row) for row in log] == [
        ("a", 1, "pending", 1),
        ("a", 2, "completed", 3),
        ("b", 1, "pending", 2),
        ("c", 1, "pending", 1),
        ("c", 2, "completed", 2),
    ]
    await owner.close()


async def test_rows_of_users_who_are_gone_are_kept(supabase: Elsewhere) -> None:
    async with supabase.connect() as postgres:
        await postgres.execute(BARE)
        await postgres.execute("insert into image_generations values ('t', gen_random_uuid(), 'pending', 'x')")
        await migrate(supabase.owner_url)
        await postgres.execute("update image_generations set status = 'failed'")
        assert await postgres.fetchval("select status from image_generations") == "failed"
        assert await postgres.fetchval("select count(*) from task_events") == 0
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await postgres.execute(
                "insert into image_generations (task_id, user_id, prompt) values ('u', gen_random_uuid(), 'x')"
            )


REFUSED = {
    "alter table image_generations drop column result": "has no column result",
    "alter table image_generations alter user_id type text": "user_id is text, but must be uuid",
    "alter table image_generations alter created_at type date using now()": "created_at is date, but must be timestamp",
    "alter table image_generations alter status type integer using 1": "status is integer, but must be an enum or text",
    "alter table image_generations add progress text": "progress is text, but must be smallint",
    "insert into image_generations (task_id, status) values ('t', 'abandoned')": "rows whose status is abandoned",
    "alter table image_generations alter created_at type timestamp, alter task_id type varchar(9); "
    "create materialized view m as select created_at from image_generations": "the view public.m uses image_gen",
}


async def test_a_table_that_is_another_is_refused_in_one_line(
    empty_database: Database, subtests: pytest.Subtests
) -> None:
    owner: OwnerConnection = await asyncpg.connect(empty_database.owner_url)
    for change, reason in REFUSED.items():
        await owner.execute("drop table if exists image_generations cascade")
        await owner.execute(BARE + change)
        with subtests.test(change), pytest.raises(asyncpg.RaiseError, match=reason):
            await migrate(empty_database.owner_url)
        assert await owner.fetchval("select count(*) from taskbeam.migrations") == 0
    await owner.close()
