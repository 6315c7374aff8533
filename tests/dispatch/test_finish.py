"""What becomes of a stored picture when something else happens between the look at the task and its commit."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from server import results
from server.db import Pool
from server.dispatch.finish import Finish
from server.dispatch.picture import Picture
from server.tasks.state import Fail
from server.tasks.store import NoSuchTask, TaskStore
from tests.conftest import Connection
from tests.tasks.conftest import User

PICTURE = Picture(b"\x89PNG\r\n\x1a\n" + b"x" * 99, "png")


class Meanwhile(TaskStore):
    """A store in which something happens just after a task was found open."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool, lambda _: None, public_url="", deadline_seconds=900)
        self.happens: Callable[[], Awaitable[object]] | None = None

    async def is_open(self, task_id: str, attempt: int) -> bool:
        found = await super().is_open(task_id, attempt)
        if self.happens is not None:
            await self.happens()
        return found


@pytest.fixture
def store(pool: Pool) -> Meanwhile:
    return Meanwhile(pool)


async def begin(store: Meanwhile) -> str:
    user = User()
    return (await store.create(user.claims, user.id, "a boat", b"{}")).task_id


async def test_it_has_failed(store: Meanwhile, tmp_path: Path) -> None:
    task_id = await begin(store)
    store.happens = lambda: store.fail(task_id, Fail(attempt=1, error="cancelled", error_code="x", cancelled=True))
    assert await Finish(store, tmp_path / "r", b"s").complete(task_id, 1, PICTURE) == "stale"
    assert list((tmp_path / "r").iterdir()) == []


async def test_it_is_gone(store: Meanwhile, tmp_path: Path, owner: Connection) -> None:
    task_id = await begin(store)
    store.happens = lambda: owner.execute("delete from public.image_generations")
    with pytest.raises(NoSuchTask):
        await Finish(store, tmp_path / "r", b"s").complete(task_id, 1, PICTURE)
    assert list((tmp_path / "r").iterdir()) == []


async def test_it_was_completed_with_the_same(store: Meanwhile, tmp_path: Path) -> None:
    task_id = await begin(store)
    finish = Finish(store, tmp_path / "r", b"s")

    async def the_other() -> None:
        store.happens = None
        assert await finish.complete(task_id, 1, PICTURE) == "applied"

    store.happens = the_other
    assert await finish.complete(task_id, 1, PICTURE) == "duplicate"
    (kept,) = (tmp_path / "r").iterdir()
    assert await store.result_of(task_id) == f"/results/{kept.name}"


async def test_nobody_knows_whether_it_was_committed(
    store: Meanwhile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that a task may name is never taken away."""
    task_id = await begin(store)

    async def lost(*_: object, **__: object) -> None:
        raise ConnectionResetError

    monkeypatch.setattr(store, "complete", lost)
    with pytest.raises(ConnectionResetError):
        await Finish(store, tmp_path / "r", b"s").complete(task_id, 1, PICTURE)
    assert len(list((tmp_path / "r").iterdir())) == 1


async def test_what_is_too_late_is_not_even_stored(
    store: Meanwhile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = await begin(store)
    await store.fail(task_id, Fail(attempt=1, error="x", error_code="x"))

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(results, "save", never)
    for attempt in (1, 2):
        assert await Finish(store, tmp_path / "r", b"s").complete(task_id, attempt, PICTURE) == "stale"
    with pytest.raises(NoSuchTask):
        await Finish(store, tmp_path / "r", b"s").complete("nobody", 1, PICTURE)
