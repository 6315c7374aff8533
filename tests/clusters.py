"""Postgres as it is found elsewhere: of another version, with an owner who is no superuser, and as Supabase sets it up.

Each kind has a cluster of its own, since roles belong to a cluster. Per test a database is cloned, as in conftest.
The fixtures are known to every test through conftest.py.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest

from server.db import Pool, close_pool, open_pool
from server.embedded.postgres import EmbeddedPostgres
from server.migrate import create_login_role, migrate
from server.settings import Settings

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# None: the binaries that come with us.
BINARIES: dict[int, Path | None] = {15: Path("/usr/lib/postgresql/15/bin"), 18: None}
SUPABASE = Path(__file__).with_name("supabase.sql")


@dataclass(frozen=True)
class Elsewhere:
    """A database somewhere else: `owner_url` is who migrates, `url` our login role, `superuser_url` the host."""

    version: int
    owner_url: str
    url: str
    superuser_url: str

    @contextlib.asynccontextmanager
    async def connect(self, *, role: str | None = None, superuser: bool = False) -> AsyncIterator[Connection]:
        """A connection of the owner or the superuser; with `role` it acts as that one."""
        settings = {"role": role} if role else {}
        connection = await asyncpg.connect(
            self.superuser_url if superuser or role else self.owner_url, server_settings=settings
        )
        try:
            yield connection
        finally:
            await connection.close()

    @contextlib.asynccontextmanager
    async def pool(self) -> AsyncIterator[Pool]:
        """The pool of a process of ours."""
        opened = await open_pool(Settings.from_env({"DATABASE_URL": self.url}), application="test")
        try:
            yield opened
        finally:
            await close_pool(opened)


@contextlib.contextmanager
def _cluster(folder: Path, version: int, superuser: str) -> Iterator[EmbeddedPostgres]:
    binaries = BINARIES[version]
    if binaries is not None and not (binaries / "postgres").exists():
        pytest.skip(f"NOT TESTED with Postgres {version}: {binaries} is missing (apt-get install postgresql-{version})")
    server = EmbeddedPostgres(folder, binaries=binaries, superuser=superuser)
    server.start()
    try:
        yield server
    finally:
        server.stop()


async def _clone(server: EmbeddedPostgres, version: int, template: str, owner: str) -> AsyncIterator[Elsewhere]:
    name = f"t_{secrets.token_hex(6)}"
    admin = await asyncpg.connect(server.url("postgres"))
    try:
        await admin.execute(f"create database {name} template {template} owner {owner}")
        yield Elsewhere(version, server.url(name, owner), server.url(name, "taskbeam"), server.url(name))
        await admin.execute(f"drop database {name} with (force)")
    finally:
        await admin.close()


# Hosted: the owner may create roles and databases, and is no superuser.


@pytest.fixture(scope="session", params=sorted(BINARIES))
def hosted_cluster(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[EmbeddedPostgres, int]]:
    version = request.param
    with _cluster(folder / f"hosted{version}-{secrets.token_hex(4)}", version, "host") as server:
        asyncio.run(_prepare_hosted(server))
        yield server, version


async def _prepare_hosted(server: EmbeddedPostgres) -> None:
    await server.ready()
    admin = await asyncpg.connect(server.url("postgres"))
    await admin.execute("create role owner login createrole createdb nosuperuser nobypassrls")
    # Two at once: they meet at the roles, which are the cluster's.
    for name in ("template_hosted", "another"):
        await admin.execute(f"create database {name} owner owner")
    await asyncio.gather(*(migrate(server.url(name, "owner")) for name in ("template_hosted", "another")))
    await admin.close()
    owner = await asyncpg.connect(server.url("template_hosted", "owner"))
    await create_login_role(owner)
    await owner.close()


@pytest.fixture
async def hosted(hosted_cluster: tuple[EmbeddedPostgres, int]) -> AsyncIterator[Elsewhere]:
    """A database that its owner, no superuser, has migrated; on each version."""
    async for database in _clone(*hosted_cluster, "template_hosted", "owner"):
        yield database


# Supabase: `postgres` is no superuser, users and roles are there, and default privileges hand out new tables.


@pytest.fixture(scope="session", params=sorted(BINARIES))
def supabase_cluster(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[EmbeddedPostgres, int]]:
    version = request.param
    with _cluster(folder / f"supabase{version}-{secrets.token_hex(4)}", version, "supabase_admin") as server:
        asyncio.run(_prepare_supabase(server))
        yield server, version


async def _prepare_supabase(server: EmbeddedPostgres) -> None:
    await server.ready()
    admin = await asyncpg.connect(server.url("postgres"))
    await admin.execute("create role postgres login")
    await admin.execute("create database template_supabase owner postgres")
    await admin.close()
    admin = await asyncpg.connect(server.url("template_supabase"))
    await admin.execute(SUPABASE.read_text())
    await admin.close()


@pytest.fixture
async def supabase(supabase_cluster: tuple[EmbeddedPostgres, int]) -> AsyncIterator[Elsewhere]:
    """A project as it is made: nothing of ours is in it, and its owner is `postgres`."""
    async for database in _clone(*supabase_cluster, "template_supabase", "postgres"):
        yield database
