"""On a project as Supabase makes it: `postgres` migrates, users are Supabase's, default privileges hand out tables."""

import asyncpg
import pytest

from server.migrate import create_login_role, migrate
from server.tasks.reading import TaskReader
from server.tasks.state import Complete, Report
from server.tasks.store import NoSuchUser
from tests.clusters import Elsewhere
from tests.tasks.conftest import User, store_on

# Projects made since hand out no rows by default, but still these.
NEW_DEFAULTS = """
alter default privileges for role postgres in schema public
  revoke select, insert, update, delete on tables from anon, authenticated, service_role;
"""
PRIVILEGES = """
select grantee::regrole::text, privilege_type from (
  select (aclexplode(relacl)).* from pg_class c join pg_namespace n on n.oid = relnamespace
   where nspname in ('public', 'taskbeam', 'dispatcher') and relkind in ('r', 'v', 'p', 'S')) a
 where grantee in (0, 'anon'::regrole)
    or (grantee in ('authenticated'::regrole, 'service_role'::regrole)
        and privilege_type not in ('SELECT', 'INSERT', 'UPDATE', 'DELETE'))
"""


async def _ready(supabase: Elsewhere, user: User) -> None:
    await migrate(supabase.owner_url)
    async with supabase.connect() as postgres:
        await create_login_role(postgres)
    async with supabase.connect(superuser=True) as admin:
        await admin.execute("insert into auth.users (id) values ($1)", user.id)


async def test_postgres_migrates_though_it_is_no_superuser(supabase: Elsewhere, user: User) -> None:
    async with supabase.connect() as postgres:
        assert await postgres.fetchval("select current_user") == "postgres"
        assert not await postgres.fetchval("select rolsuper from pg_roles where rolname = 'postgres'")
    await _ready(supabase, user)
    assert await migrate(supabase.owner_url) == []
    async with supabase.connect() as postgres:
        # What is Supabase's stays as it was, and nothing is added to its publication.
        assert await postgres.fetchval("select count(*) from pg_publication_tables") == 0
        assert await postgres.fetchval("select obj_description('auth.users'::regclass)") != "kept by taskbeam"
        assert await postgres.fetchval("select count(*) from pg_attribute where attrelid = 'auth.users'::regclass") > 5


@pytest.mark.parametrize("defaults", ["old", "new"])
async def test_what_default_privileges_hand_out_is_taken_back(supabase: Elsewhere, user: User, defaults: str) -> None:
    if defaults == "new":
        async with supabase.connect() as postgres:
            await postgres.execute(NEW_DEFAULTS)
    await _ready(supabase, user)
    async with supabase.connect() as postgres:
        assert await postgres.fetch(PRIVILEGES) == []
        await postgres.execute(
            "insert into image_generations (task_id, user_id, prompt) values ('t', $1, 'x')", user.id
        )
        callable_by_anyone = await postgres.fetch(
            """select proname from pg_proc where pronamespace in ('taskbeam'::regnamespace, 'dispatcher'::regnamespace)
                and (has_function_privilege('anon', oid, 'execute')
                     or has_function_privilege('authenticated', oid, 'execute'))"""
        )
        assert callable_by_anyone == []
    for role in ("anon", "authenticated"):
        async with supabase.connect(role=role) as connection:
            for statement in (
                "truncate image_generations cascade",
                "truncate task_events",
                "delete from image_generations",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(statement)
    async with supabase.connect(role="anon") as anon:
        for table in ("image_generations", "task_events", "taskbeam.changes", "taskbeam.owners"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await anon.execute(f"select * from {table}")  # noqa: S608
    async with supabase.connect(role="authenticated") as session:
        await session.execute("select set_config('request.jwt.claims', $1, false)", User().claims)
        assert await session.fetch("select * from image_generations") == []
        assert await session.fetch("select * from task_events") == []
        await session.execute("select set_config('request.jwt.claims', $1, false)", user.claims)
        assert len(await session.fetch("select * from image_generations")) == 1
        assert len(await session.fetch("select * from task_events")) == 1


async def test_the_path_of_a_task(supabase: Elsewhere, user: User) -> None:
    await _ready(supabase, user)
    async with supabase.pool() as pool:
        store, reader = store_on(pool, []), TaskReader(pool, public_url="")
        task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
        await store.report(task_id, Report(attempt=1, progress=40))
        await store.complete(task_id, Complete(attempt=1, result="/results/a"))
        changes, _ = await reader.since(user.claims, task_id, 0)
        assert [c.status for c in changes] == ["pending", "processing", "completed"]
        assert (await reader.since(User().claims, task_id, 0)).changes == []

        # A user whom Supabase does not know, or no longer, makes none.
        stranger = User()
        with pytest.raises(NoSuchUser):
            await store.create(stranger.claims, stranger.id, "a boat", b"{}")
        async with supabase.connect(superuser=True) as admin:
            await admin.execute("set role supabase_auth_admin")
            await admin.execute("delete from auth.users where id = $1", user.id)
        assert (await reader.since(user.claims, task_id, 0)).changes == []
        with pytest.raises(NoSuchUser):
            await store.create(user.claims, user.id, "a boat", b"{}")
    async with supabase.connect() as postgres:
        for table in ("image_generations", "task_events", "taskbeam.dispatches", "taskbeam.owners"):
            assert await postgres.fetchval(f"select count(*) from {table}") == 0, table  # noqa: S608


async def test_the_table_editor_and_the_apps_own_session(supabase: Elsewhere, user: User) -> None:
    """`postgres` edits a row; a browser's session inserts through PostgREST, as authenticator."""
    await _ready(supabase, user)
    async with supabase.connect(superuser=True) as session:
        await session.execute("set session authorization authenticator")
        await session.execute("set role authenticated")
        await session.execute("select set_config('request.jwt.claims', $1, false)", user.claims)
        await session.execute(
            "insert into image_generations (user_id, task_id, prompt) values ($1, 't', 'a boat')", user.id
        )
    async with supabase.connect() as postgres:
        await postgres.execute(
            "update image_generations set status = 'completed', result = 'https://x/y' where task_id = 't'"
        )
    async with supabase.pool() as pool:
        changes = (await TaskReader(pool, public_url="").since(user.claims, "t", 0)).changes
        assert [(c.version, c.status) for c in changes] == [(1, "pending"), (2, "completed")]
