"""On a project as Supabase makes it: `postgres` migrates, users are Supabase's, default privileges hand out tables."""

import pytest

from server.migrate import create_login_role, migrate
from server.tasks.reading import TaskReader
from server.tasks.state import Complete, Report
from server.tasks.store import NoSuchUser
from tests.clusters import Elsewhere
from tests.shapes import SHAPES
from tests.tasks.conftest import User, signed, store_on
from tests.tasks.rights import differences


async def _ready(supabase: Elsewhere, user: User, shape: str = "old grants") -> None:
    async with supabase.connect(superuser=True) as admin:
        await admin.execute(SHAPES[shape])
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


@pytest.mark.parametrize("shape", SHAPES)
async def test_rights_and_the_path_of_a_task(supabase: Elsewhere, user: User, shape: str) -> None:
    await _ready(supabase, user, shape)
    async with supabase.connect(superuser=True) as admin:
        assert await differences(admin, "taskbeam", []) == []
    async with supabase.pool() as pool:
        store, reader = store_on(pool, []), TaskReader(pool, public_url="")
        task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
        await store.report(task_id, Report(attempt=1, progress=40))
        await store.complete(task_id, Complete(attempt=1, result="/results/a"), signed("jti"))
        changes, _ = await reader.since(user.claims, task_id, 0)
        assert [c.status for c in changes] == ["pending", "processing", "completed"]
        assert (await reader.since(User().claims, task_id, 0)).changes == []
        # A task that is cancelled leaves a note, which is told how it ended, and goes in its turn.
        await store.delete(user.claims, (await store.create(user.claims, user.id, "a boat", b"{}")).task_id)
        assert await pool.execute("delete from taskbeam.deletions where last is not null") == "DELETE 1"

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
        for table in ("image_generations", "task_events", "task_deliveries", "taskbeam.dispatches", "taskbeam.owners"):
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


async def test_a_publication_of_all_tables_can_name_each_row(supabase: Elsewhere, user: User) -> None:
    """Without a key or an identity Postgres refuses to change them: a new table is found here."""
    await _ready(supabase, user, "published")
    async with supabase.connect() as postgres:
        nameless = await postgres.fetch(
            """select oid::regclass from pg_class c
                where relkind = 'r' and relnamespace::regnamespace::text in ('public', 'taskbeam', 'dispatcher')
                  and relreplident <> 'f'
                  and not exists (select from pg_index where indrelid = c.oid and indisprimary)"""
        )
        assert nameless == []
        assert await postgres.fetchval("select count(*) from cron.job") == 0
