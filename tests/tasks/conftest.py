"""A user and the two halves of the tasks' room, on this test's database."""

import asyncio
import secrets
import uuid
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from server.db import Pool
from server.tasks.expiry import Expiry
from server.tasks.ledger import Said
from server.tasks.reading import TaskReader
from server.tasks.snapshot import TaskChange
from server.tasks.store import TaskStore


@dataclass(frozen=True)
class User:
    """Somebody with verified claims."""

    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def claims(self) -> str:
        return msgspec.json.encode({"sub": self.id, "role": "authenticated"}).decode()


def new_task_id() -> str:
    return secrets.token_urlsafe(16)


def store_on(pool: Pool, published: list[TaskChange]) -> TaskStore:
    return TaskStore(pool, published.append, public_url="", deadline_seconds=900)


def signed(jti: str) -> Said:
    """A callback with this id in its signature."""
    return Said(kind="callback", jti=jti)


def expiry_on(pool: Pool, store: TaskStore) -> Expiry:
    return Expiry(pool, store.announce)


@pytest.fixture
def user() -> User:
    return User()


@pytest.fixture
def published() -> list[TaskChange]:
    """What the store handed on, in order."""
    return []


@pytest.fixture
def store(pool: Pool, published: list[TaskChange]) -> TaskStore:
    return store_on(pool, published)


@pytest.fixture
def reader(pool: Pool) -> TaskReader:
    return TaskReader(pool, public_url="")


class Counting:
    """A pool that counts the calls, and takes a while over each."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.calls: list[int] = []  # how much each asked for

    def acquire(self, **options: Any) -> Any:
        pool, calls = self._pool, self.calls

        class Borrowed:
            async def __aenter__(self) -> "Borrowed":
                self._context = pool.acquire(**options)
                self._connection = await self._context.__aenter__()
                self.transaction = self._connection.transaction
                return self

            async def __aexit__(self, *error: object) -> None:
                await self._context.__aexit__(*error)

            async def fetch(self, query: str, *arguments: Any) -> Any:
                calls.append(len(arguments[0]))
                await asyncio.sleep(0.02)
                return await self._connection.fetch(query, *arguments)

        return Borrowed()


@pytest.fixture
def counting(pool: Pool) -> Counting:
    return Counting(pool)
