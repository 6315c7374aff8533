"""The real parts every test may use: one private Postgres and Redis a run, a migrated database of its own a test.

A database is a clone of a migrated template, so each test begins with the schema and nothing else. What runs in
processes is started by the `deploy` fixture (deployment.py) and ends with the test.
"""

import asyncio
import concurrent.futures
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest

from server.db import Pool, close_pool, open_pool
from server.embedded.postgres import EmbeddedPostgres
from server.embedded.redis import EmbeddedRedis
from server.migrate import create_login_role, migrate
from server.settings import Settings
from tests.clusters import hosted, hosted_cluster, supabase, supabase_cluster  # noqa: F401  (fixtures)
from tests.deployment import Database, Deployment
from tests.supervised import place, up  # noqa: F401  (fixtures)

TEMPLATE = "template_taskbeam"

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Deploy: TypeAlias = Callable[..., Awaitable[Deployment]]


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder that root's Postgres, which runs as another user, can enter; pytest's own cannot be."""
    path = Path(tempfile.mkdtemp(prefix="taskbeam-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(folder: Path) -> Iterator[EmbeddedPostgres]:
    """A cluster with the template; `fsync` stays on, as for users."""
    server = EmbeddedPostgres(folder)
    server.start()
    try:
        asyncio.run(_prepare(server))
        yield server
    finally:
        server.stop()


async def _prepare(server: EmbeddedPostgres) -> None:
    await server.ready()
    connection = await asyncpg.connect(server.url("postgres"))
    await connection.execute(f"create database {TEMPLATE}")
    await connection.close()
    await migrate(server.url(TEMPLATE))
    connection = await asyncpg.connect(server.url(TEMPLATE))
    await create_login_role(connection)
    await connection.close()


@pytest.fixture
async def own_postgres(folder: Path) -> AsyncIterator[EmbeddedPostgres]:
    """A cluster that a test may stop; its database `postgres` is migrated."""
    server = EmbeddedPostgres(folder / f"stopped-now-and-then-{secrets.token_hex(4)}")
    server.start()
    await server.ready()
    await migrate(server.url("postgres"))
    connection = await asyncpg.connect(server.url("postgres"))
    await create_login_role(connection)
    await connection.close()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_server(folder: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(folder)
    server.start()
    try:
        server.ready()
        yield server
    finally:
        server.stop()


class Spares:
    """Databases made from the template while tests run: the next one is there when it is asked for."""

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self._postgres = postgres
        self._maker = concurrent.futures.ThreadPoolExecutor(1)
        self._next = self._maker.submit(self._make)

    def take(self) -> str:
        """The name of one that nobody has used."""
        name = self._next.result()
        self._next = self._maker.submit(self._make)
        return name

    def drop(self, name: str) -> None:
        """Some time soon."""
        self._maker.submit(self._run, f"drop database {name} with (force)")

    def close(self) -> None:
        self._maker.shutdown()

    def _make(self) -> str:
        name = f"t_{secrets.token_hex(6)}"
        self._run(f"create database {name} template {TEMPLATE}")
        return name

    def _run(self, statement: str) -> None:
        async def run() -> None:
            admin = await asyncpg.connect(self._postgres.url("postgres"))
            try:
                await admin.execute(statement)
            finally:
                await admin.close()

        asyncio.run(run())


@pytest.fixture(scope="session")
def spares(postgres: EmbeddedPostgres) -> Iterator[Spares]:
    made = Spares(postgres)
    yield made
    made.close()


@pytest.fixture
async def empty_database(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    """A database with nothing in it."""
    name = f"t_{secrets.token_hex(6)}"
    admin = await asyncpg.connect(postgres.url("postgres"))
    try:
        await admin.execute(f"create database {name} template template1")
        yield named(postgres, name)
        await admin.execute(f"drop database {name} with (force)")
    finally:
        await admin.close()


@pytest.fixture
def database(postgres: EmbeddedPostgres, spares: Spares) -> Iterator[Database]:
    """A migrated database: `url` for the server's login role, `owner_url` for the superuser."""
    name = spares.take()
    yield named(postgres, name)
    spares.drop(name)


def named(postgres: EmbeddedPostgres, name: str) -> Database:
    """The database of that name, as its users have it."""
    return Database(name, url=postgres.url(name, "taskbeam"), owner_url=postgres.url(name))


@pytest.fixture
async def owner(database: Database) -> AsyncIterator[Connection]:
    """A superuser's connection: looks at everything, as no process of ours can."""
    connection = await asyncpg.connect(database.owner_url)
    yield connection
    await connection.close()


@pytest.fixture
def settings(database: Database, redis_server: EmbeddedRedis, tmp_path: Path) -> Settings:
    """Settings of a process on this test's database, for parts that run inside the test."""
    return Settings.from_env(
        {
            "DATABASE_URL": database.url,
            "REDIS_URL": redis_server.url(),
            "REDIS_PREFIX": f"{database.name}:",
            "QSTASH_URL": "http://127.0.0.1:9",
            "QSTASH_TOKEN": "token-of-a-test",
            "QSTASH_CURRENT_SIGNING_KEY": "sig_current_key_of_the_tests_0000",
            "QSTASH_NEXT_SIGNING_KEY": "sig_next_key_of_the_tests_00000000",
            "GENERATOR_URL": "http://127.0.0.1:9/",
            "DATA_DIR": str(tmp_path),
        }
    )


@pytest.fixture
async def pool(settings: Settings) -> AsyncIterator[Pool]:
    """The pool as every process of ours has it: as service_role, without a superuser's rights."""
    opened = await open_pool(settings, application="test")
    yield opened
    await close_pool(opened)


@pytest.fixture
async def deploy(database: Database, redis_server: EmbeddedRedis, folder: Path) -> AsyncIterator[Deploy]:
    """Start real processes: `await deploy(webs=2, env={…})` gives a Deployment; all of them end with the test."""
    started: list[Deployment] = []

    async def start(**options: object) -> Deployment:
        deployment = Deployment(database, redis_server.url(), folder / database.name, **options)  # type: ignore[arg-type]
        started.append(deployment)
        await deployment.start()
        return deployment

    yield start
    for deployment in started:
        deployment.stop()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The pure lane need not import what only the other tests use."""
    if config.option.markexpr != "pure" or not collection_path.name.startswith("test_"):
        return None
    return True if "mark.pure" not in collection_path.read_text() else None
