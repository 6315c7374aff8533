"""Through a transaction pooler: nothing of one borrower is left for the next, and an outage costs only time."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner

from server.app import PROBE
from server.cli import main
from server.db import (
    SESSION,
    UNAVAILABLE,
    DatabaseNotReady,
    Pool,
    acting_as,
    close_pool,
    listen,
    open_pool,
    wait_until_ready,
)
from server.embedded.postgres import EmbeddedPostgres
from server.embedded.redis import EmbeddedRedis
from server.migrate import migrate
from server.settings import Settings
from server.tasks.reading import TaskReader
from tests.conftest import Connection
from tests.deploy.login import create_login
from tests.deploy.pooler import BINARY, PgBouncer
from tests.deployment import Database, Deployment
from tests.playing import Play
from tests.receiver import until
from tests.sse import Event, changes, check_followed
from tests.tasks.conftest import User, store_on

pytestmark = pytest.mark.skipif(
    BINARY is None, reason="NOT TESTED with PgBouncer: it is not on the path (apt-get install pgbouncer)"
)
CONTEXT = """select current_user, session_user, nullif(current_setting('request.jwt.claims', true), '') as claims,
                    auth.uid() as uid, pg_backend_pid() as pid"""

Pooler = Callable[..., PgBouncer]


@pytest.fixture
async def role(owner: Connection, database: Database, tmp_path: Path) -> AsyncIterator[str]:
    """A login role made by login.sql, of this test alone."""
    name = f"login_{secrets.token_hex(4)}"
    create_login(database.owner_url, tmp_path, name)
    yield name
    await owner.execute(f"drop role {name}")


@pytest.fixture
def pooler(folder: Path) -> Iterator[Pooler]:
    started: list[PgBouncer] = []

    def start(postgres: EmbeddedPostgres, *users: str, **options: Any) -> PgBouncer:
        one = PgBouncer(postgres, folder / f"pooler-{secrets.token_hex(4)}", users, **options)
        started.append(one)
        one.start()
        return one

    yield start
    for one in started:
        one.stop()


def settings_of(url: str, direct_url: str, **env: str) -> Settings:
    return Settings.from_env(
        {"DATABASE_URL": url, "DATABASE_DIRECT_URL": direct_url, "DATABASE_POOLER": "transaction", **env}
    )


@pytest.fixture
async def settings(pooler: Pooler, postgres: EmbeddedPostgres, database: Database, role: str) -> Settings:
    """A pool of five before a single connection of Postgres's."""
    bouncer = pooler(postgres, role, wait_seconds=1)
    return settings_of(bouncer.url(database.name, role), database.url, DATABASE_CONNECTIONS="5")


@pytest.fixture
async def pool(settings: Settings) -> AsyncIterator[Pool]:
    opened = await open_pool(settings, application="test")
    yield opened
    await close_pool(opened)


async def test_a_session_begins_as_without_a_pooler(settings: Settings, pool: Pool) -> None:
    await wait_until_ready(settings, PROBE)
    found = {
        name: await pool.fetchval("select setting from pg_settings where lower(name) = $1", name) for name in SESSION
    }
    assert found == {**SESSION, "role": None}
    assert await pool.fetchval("select current_user") == "service_role"
    assert await pool.fetchval("select application_name from pg_stat_activity where pid = pg_backend_pid()") == (
        "taskbeam test"
    )
    async with acting_as(pool, "{}") as connection:
        assert await connection.fetchval("show statement_timeout") == "3s"  # of the browser's own statements, too


async def test_borrowers_of_one_connection_see_only_their_own(pool: Pool) -> None:
    users = [User() for _ in range(4)]
    store, reader = store_on(pool, []), TaskReader(pool, public_url="")
    tasks = [(await store.create(user.claims, user.id, "a boat", b"{}")).task_id for user in users]

    async def look(me: int, at: int) -> None:
        found, _ = await reader.since(users[me].claims, tasks[at], 0)
        assert len(found) == (1 if me == at else 0)

    async def fail(me: int) -> None:
        with pytest.raises(asyncpg.DivisionByZeroError):
            async with acting_as(pool, users[me].claims) as connection:
                await connection.execute("select 1 / 0")

    async def give_up(me: int) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), acting_as(pool, users[me].claims) as connection:
                await connection.execute("select pg_sleep(1)")

    await asyncio.gather(
        *(look(me, at) for _ in range(5) for me in range(4) for at in range(4)), *map(fail, range(4)), give_up(1)
    )
    rows = [await pool.fetchrow(CONTEXT) for _ in range(10)]
    clean = {(row["current_user"], row["claims"], row["uid"]) for row in rows if row is not None}
    assert clean == {("service_role", None, None)}
    assert len({row["pid"] for row in rows if row is not None}) == 1, "all of them had the same connection"


async def test_what_the_pooler_says_of_an_outage_is_one(pool: Pool, owner: Connection) -> None:
    with pytest.raises(UNAVAILABLE):  # noqa: PT012  (it is the end of it that fails: nothing can be committed)
        async with acting_as(pool, "{}") as connection:
            pid = await connection.fetchval("select pg_backend_pid()")
            with pytest.raises(asyncpg.ProtocolViolationError, match="query_wait_timeout") as waited:
                await pool.fetchval("select 1")
            assert isinstance(waited.value, UNAVAILABLE)
            await owner.execute("select pg_terminate_backend($1)", pid)
            with pytest.raises(UNAVAILABLE):
                await connection.fetchval("select 1")
    assert await pool.fetchval("select 1") == 1
    with pytest.raises(UNAVAILABLE):  # as Supabase's pooler says that it has lost the database
        await pool.execute("do $$ begin raise exception 'DbHandler exited' using errcode = 'XX000'; end $$")


async def test_a_login_that_brings_nothing_along_is_refused(
    pooler: Pooler, postgres: EmbeddedPostgres, database: Database, owner: Connection
) -> None:
    name = f"plain_{secrets.token_hex(4)}"
    await owner.execute(f"create role {name} login noinherit; grant authenticated, service_role to {name}")
    try:
        url = pooler(postgres, name).url(database.name, name)
        with pytest.raises(DatabaseNotReady, match=r"role is none and not service_role.*login\.sql"):
            await wait_until_ready(settings_of(url, database.url), PROBE)
        # A pooler that was not named as one.
        with pytest.raises(DatabaseNotReady, match="is a pooler: set DATABASE_POOLER=transaction"):
            await wait_until_ready(Settings.from_env({"DATABASE_URL": url}), PROBE)
    finally:
        await owner.execute(f"drop role {name}")


async def test_a_session_pooler_takes_migrations_and_notices(
    pooler: Pooler, postgres: EmbeddedPostgres, empty_database: Database
) -> None:
    """It refuses parameters of a connection just the same."""
    url = pooler(postgres, "postgres", mode="session", size=2).url(empty_database.name, "postgres")
    env = {"DATABASE_URL": "postgres://127.0.0.1:9/nowhere?pgbouncer=true", "DATABASE_DIRECT_URL": url}
    done = await asyncio.to_thread(CliRunner().invoke, main, ["migrate"], env=env)
    assert (done.exit_code, done.output.partition(",")[0]) == (0, "applied 000_ground.sql"), done.output
    heard: asyncio.Queue[str] = asyncio.Queue()
    listening = asyncio.create_task(listen(url, "here", heard.put_nowait))
    try:
        async with asyncio.timeout(5):
            assert await heard.get() == ""
            connection = await asyncpg.connect(empty_database.owner_url)
            await connection.execute("notify here, 'one'")
            await connection.close()
            assert await heard.get() == "one"
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def follow(here: Deployment, task_id: str, web: int) -> list[Event]:
    """As a browser does: a stream that breaks is opened anew with the cursor it had."""
    seen: list[Event] = []
    async with here.client(web) as client:
        while not seen or seen[-1].data["status"] not in ("completed", "failed"):
            after = {"Last-Event-ID": str(seen[-1].id)} if seen else None
            seen += await changes(client, f"taskId={task_id}", after)
    return seen


async def test_all_processes(
    own_postgres: EmbeddedPostgres, pooler: Pooler, redis_server: EmbeddedRedis, folder: Path
) -> None:
    """Two web processes and the dispatcher, 30 connections of theirs over two; then pooler and Postgres go away."""
    place = folder / f"pooled-{secrets.token_hex(4)}"
    place.mkdir()
    assert await migrate(own_postgres.url("postgres")) == []
    create_login(own_postgres.url("postgres"), place)
    bouncer = pooler(own_postgres, "taskbeam", size=2)
    direct = own_postgres.url("postgres", "taskbeam")
    database = Database("pooled", bouncer.url("postgres", "taskbeam") + "?pgbouncer=true", own_postgres.url("postgres"))
    env = {"DATABASE_DIRECT_URL": direct, "GENERATOR_SECONDS": "0.3"}
    here = Deployment(database, redis_server.url(), place / "parts", webs=2, env=env)
    try:
        await here.start()
        play = await Play.of(here)
        task_ids = [await play.create(web=n % 2) for n in range(6)]
        for seen in await asyncio.gather(*(follow(here, task, (n + 1) % 2) for n, task in enumerate(task_ids))):
            check_followed(seen)
            assert seen[-1].data["status"] == "completed"

        owner = await asyncpg.connect(own_postgres.url("postgres"))
        lent = await owner.fetch(
            "select query from pg_stat_activity where usename = 'taskbeam' and query not ilike 'listen %'"
        )
        listening = await owner.fetchval(
            "select count(*) from pg_stat_activity where usename = 'taskbeam' and query ilike 'listen %'"
        )
        await owner.close()
        assert len(lent) <= 2
        assert listening == 3, "each process hears notices past the pooler"

        # The generator's part is played from here: the tasks wait while something goes away.
        assert here.generator is not None
        here.generator.kill()
        waiting = await play.create()
        following = asyncio.create_task(follow(here, waiting, 1))
        bouncer.stop()
        await asyncio.sleep(0.3)
        async with here.client() as client:
            refused = await client.post("/api/generate", json={"prompt": "a boat"})
            assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        bouncer.start()
        later = await play.create()

        own_postgres.stop()  # and the pooler stays
        async with here.client() as client:
            refused = await client.post("/api/generate", json={"prompt": "a boat"})
            assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        own_postgres.start()
        await own_postgres.ready()

        async def taken() -> bool:
            answer = await play.finish(waiting, web=1)
            assert answer.status_code in (200, 503), answer.text
            return answer.status_code == 200

        await until(taken, "the callback is committed")  # QStash sends it again for as long
        seen = await following
        check_followed(seen)
        assert seen[-1].data["status"] == "completed"
        async with here.client() as client:
            assert (await client.get(f"/api/generate/status?taskId={later}")).status_code == 200
        for server in here.servers:
            assert "Traceback" not in server.log.read_text(), server.tail()
    finally:
        here.stop()
