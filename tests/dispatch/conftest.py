"""Processes that the tests of a module share: a dispatcher with a receiver, and a web process with a provider."""

import asyncio
import contextlib
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import pytest
from qstash import AsyncQStash
from qstash.message import PublishResponse

from server.db import Pool
from server.embedded.postgres import EmbeddedPostgres
from server.embedded.redis import EmbeddedRedis
from server.settings import Settings
from tests.conftest import TEMPLATE
from tests.deployment import TOKEN, Database, Deployment, listen
from tests.dispatch.reconciling import World, member
from tests.dispatch.runs import GENERATOR, Run, begin
from tests.provider import Memory
from tests.receiver import Receiver

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@dataclass(frozen=True)
class Home:
    """`deployment` runs one process of ours that talks to `receiver_socket`; nothing else."""

    deployment: Deployment
    receiver_socket: socket.socket


@contextlib.contextmanager
def shared_database(postgres: EmbeddedPostgres) -> Iterator[Database]:
    """As the `database` fixture, for the tests of a module together."""
    name = f"m_{secrets.token_hex(6)}"

    async def run(statement: str) -> None:
        admin = await asyncpg.connect(postgres.url("postgres"))
        await admin.execute(statement)
        await admin.close()

    asyncio.run(run(f"create database {name} template {TEMPLATE}"))
    yield Database(name, url=postgres.url(name, "taskbeam"), owner_url=postgres.url(name))
    asyncio.run(run(f"drop database {name} with (force)"))


@contextlib.asynccontextmanager
async def sdk(url: str) -> AsyncIterator[AsyncQStash]:
    client = AsyncQStash(TOKEN, base_url=url, retry=False)
    yield client
    await client.http._client.aclose()  # it offers no way to close it


async def publish(client: AsyncQStash, **options: Any) -> str:
    """Publish with the SDK; the message's id."""
    published = await client.message.publish(**options)
    assert isinstance(published, PublishResponse)
    return published.message_id


async def row_of(connection: Connection, message_id: str) -> dict[str, Any]:
    """A message as it stands in the database."""
    row = await connection.fetchrow("select *, state::text as state from dispatcher.messages where id = $1", message_id)
    assert row is not None
    return dict(row)


@contextlib.contextmanager
def shared_home(
    postgres: EmbeddedPostgres,
    redis_server: EmbeddedRedis,
    folder: Path,
    setting: str,
    more: Callable[[str], dict[str, str]] = lambda _: {},
    **parts: Any,
) -> Iterator[Home]:
    """`setting` is the variable that tells the process of the receiver's origin; `more` gives others from it."""
    listener = listen()
    origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
    env = {setting: origin, "LOG_LEVEL": "debug", "GENERATOR_URL": GENERATOR, **more(origin)}
    with shared_database(postgres) as database:
        url, place = redis_server.url(), folder / database.name
        deployment = Deployment(database, url, place, generator=False, env=env, **parts)
        try:
            asyncio.run(deployment.start())
            yield Home(deployment, listener)
        finally:
            deployment.stop()
            listener.close()


@pytest.fixture(scope="module")
def home(postgres: EmbeddedPostgres, redis_server: EmbeddedRedis, folder: Path) -> Iterator[Home]:
    """One dispatcher, and where it may deliver to."""
    setting = "DISPATCHER_PRIVATE_ORIGINS"
    with shared_home(postgres, redis_server, folder, setting, webs=0, dispatchers=1) as home:
        yield home


@pytest.fixture(scope="module")
def office(postgres: EmbeddedPostgres, redis_server: EmbeddedRedis, folder: Path) -> Iterator[Home]:
    """One web process, and where it believes the QStash API to be."""
    with shared_home(postgres, redis_server, folder, "QSTASH_URL", webs=1, dispatchers=0) as office:
        yield office


@pytest.fixture
async def provider(office: Home) -> AsyncIterator[Receiver]:
    """What the shared web process takes for the QStash API."""
    async with Receiver(office.receiver_socket) as provider:
        yield provider


@pytest.fixture
async def tasks(office: Home) -> AsyncIterator[Connection]:
    """A superuser's connection to the shared web process's database."""
    connection = await asyncpg.connect(office.deployment.database.owner_url)
    yield connection
    await connection.close()


@pytest.fixture
async def run(office: Home, provider: Receiver, tasks: Connection) -> Run:
    """A task that was handed on."""
    return await begin(office.deployment.web.url, provider, tasks)


@pytest.fixture
async def receiver(home: Home) -> AsyncIterator[Receiver]:
    """Where the shared dispatcher may deliver to."""
    async with Receiver(home.receiver_socket) as receiver:
        yield receiver


@pytest.fixture
async def qstash(home: Home) -> AsyncIterator[AsyncQStash]:
    """The published SDK, pointed at the shared dispatcher."""
    async with sdk(home.deployment.dispatcher.url) as client:
        yield client


@pytest.fixture
async def messages(home: Home) -> AsyncIterator[Connection]:
    """A superuser's connection to the shared dispatcher's database."""
    connection = await asyncpg.connect(home.deployment.database.owner_url)
    yield connection
    await connection.close()


@pytest.fixture
async def api() -> AsyncIterator[Receiver]:
    """Where a QStash API is asked for what it knows."""
    async with Receiver() as api:
        yield api
    api.listener.close()


@pytest.fixture
def memory(api: Receiver, settings: Settings) -> Memory:
    """What it knows."""
    return Memory(api, settings.qstash_token or "")


@pytest.fixture
def world(pool: Pool, settings: Settings, owner: Connection, memory: Memory, api: Receiver) -> World:
    """A reconciler that asks it."""
    return member(pool, settings, owner, memory, api.origin)
