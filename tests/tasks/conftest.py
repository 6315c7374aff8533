"""A user and the two halves of the tasks' room, on this test's database."""

import secrets
import uuid
from dataclasses import dataclass, field

import msgspec
import pytest

from server.db import Pool
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
