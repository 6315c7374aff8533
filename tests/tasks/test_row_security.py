"""One user never sees another's task, and no connection remembers whom it served. Roles: test_rights.py."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from server.db import Pool, acting_as, close_pool, open_pool
from server.settings import Settings
from server.tasks.reading import TaskReader
from server.tasks.state import Report
from server.tasks.store import TaskStore
from tests.conftest import Connection
from tests.tasks.conftest import User, new_task_id

NOBODY = '{"role":"authenticated"}'
CONTEXT = "select current_user, session_user, current_setting('request.jwt.claims', true) as claims, auth.uid() as uid"

Read = Callable[[TaskReader, User, User, str], Awaitable[object]]

# What a caller who asks for another's task, or as another's user, is told.
READS: dict[str, tuple[Read, object]] = {
    "since": (lambda r, me, _, task: r.since(me.claims, task, 0), ([], False)),
    "overview of it": (lambda r, me, _, task: r.overview(me.claims, me.id, [task]), (0, 0, [])),
    "overview of theirs": (lambda r, me, them, _: r.overview(me.claims, them.id, None), (0, 0, [])),
    "all since": (lambda r, me, them, _: r.all_since(me.claims, them.id, 0), []),
    "deliveries": (lambda r, me, _, task: r.deliveries(me.claims, task), None),
    "page": (lambda r, me, them, _: r.page(me.claims, them.id, limit=5, cursor=None, status=None), ([], None)),
}


async def test_the_task_of_another_is_as_good_as_absent(
    store: TaskStore, reader: TaskReader, user: User, subtests: pytest.Subtests
) -> None:
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    await store.report(task_id, Report(attempt=1, progress=5))
    stranger, absent = User(), User()
    for name, (read, nothing) in READS.items():
        with subtests.test(name):
            assert await read(reader, stranger, user, task_id) == nothing
            assert await read(reader, stranger, absent, new_task_id()) == nothing
            assert await read(reader, user, user, task_id) != nothing  # it would find something


async def test_a_user_cannot_make_a_task_of_another(store: TaskStore, owner: Connection, user: User) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
        await store.create(User().claims, user.id, "a boat", b"{}")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
        await store.create(NOBODY, user.id, "a boat", b"{}")
    assert await owner.fetchval("select count(*) from image_generations") == 0
    assert await owner.fetchval("select count(*) from auth.users") == 0


async def test_a_generous_policy_of_others_opens_nothing(
    store: TaskStore, reader: TaskReader, owner: Connection, user: User
) -> None:
    await owner.execute('create policy "Enable read access for all users" on image_generations using (true)')
    await owner.execute('create policy "Enable read access for all users" on task_events using (true)')
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    assert (await reader.since(User().claims, task_id, 0)).changes == []
    assert len((await reader.since(user.claims, task_id, 0)).changes) == 1
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await store.create(User().claims, user.id, "a boat", b"{}")


# The connection afterwards


@pytest.fixture
async def one(settings: Settings) -> AsyncIterator[Pool]:
    """Every borrower has the same connection."""
    opened = await open_pool(settings, application="test", size=1)
    yield opened
    await close_pool(opened)


async def _is_clean(pool: Pool) -> None:
    row = await pool.fetchrow(CONTEXT)
    assert row is not None
    assert (row["current_user"], row["session_user"]) == ("service_role", "taskbeam")
    assert row["claims"] in (None, "")
    assert row["uid"] is None


async def test_a_connection_forgets_whom_it_served(one: Pool, user: User) -> None:
    async with acting_as(one, user.claims) as connection:
        row = await connection.fetchrow(CONTEXT)
        assert row is not None
        assert (row["current_user"], str(row["uid"])) == ("authenticated", user.id)
    await _is_clean(one)


async def test_what_it_was_told_ends_with_the_transaction(owner: Connection, user: User) -> None:
    """Also where no pool cleans up between borrowers, as behind a pooler."""
    for ending in ("commit", "rollback"):
        await owner.execute("set role service_role")
        await owner.execute("begin")
        await owner.execute("select taskbeam.act_as($1)", user.claims)
        row = await owner.fetchrow(CONTEXT)
        assert row is not None
        assert (row["current_user"], str(row["uid"])) == ("authenticated", user.id)
        await owner.execute(ending)
        row = await owner.fetchrow(CONTEXT)
        assert row is not None
        assert (row["current_user"], row["claims"] or None, row["uid"]) == ("service_role", None, None)


async def test_it_forgets_after_an_error(one: Pool, user: User) -> None:
    with pytest.raises(asyncpg.DivisionByZeroError):
        async with acting_as(one, user.claims) as connection:
            await connection.execute("select 1 / 0")
    await _is_clean(one)
    with pytest.raises(LookupError):
        async with acting_as(one, user.claims):
            raise LookupError
    await _is_clean(one)


async def test_it_forgets_after_a_cancellation(one: Pool, user: User) -> None:
    begun = asyncio.Event()

    async def serve(seconds: float) -> None:
        async with acting_as(one, user.claims) as connection:
            begun.set()
            await connection.execute("select pg_sleep($1)", seconds)

    serving = asyncio.create_task(serve(20))
    await begun.wait()
    await asyncio.sleep(0.05)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    await _is_clean(one)


async def test_it_forgets_when_all_took_too_long(one: Pool, user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.db.STATEMENT_TIMEOUT_MS", 100)
    with pytest.raises(TimeoutError):
        async with acting_as(one, user.claims) as connection:
            await connection.execute("select pg_sleep(20)")
    await _is_clean(one)


async def test_the_login_role_is_nobody_in_particular(pool: Pool) -> None:
    row = await pool.fetchrow("select * from pg_roles where rolname = session_user")
    assert row is not None
    assert row["rolname"] == "taskbeam"
    assert not any(row[may] for may in ("rolsuper", "rolbypassrls", "rolcreaterole", "rolcreatedb", "rolreplication"))
    assert not row["rolinherit"]
    assert not await pool.fetchval(
        "select exists (select from pg_class where relowner = 'taskbeam'::regrole union all "
        "select from pg_proc where proowner = 'taskbeam'::regrole)"
    )
    for forbidden in (
        "alter table public.image_generations disable row level security",
        "set session_replication_role = replica",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.execute(forbidden)


async def test_claims_that_name_no_user_see_nothing(store: TaskStore, reader: TaskReader, user: User) -> None:
    before = await reader.now()
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    assert (await reader.since(NOBODY, task_id, 0)).changes == []
    assert (await reader.since("{}", task_id, 0)).changes == []
    _, recent, _ = await reader.changed_since(before)
    assert len(recent) == 1  # the tick, as the server, does
