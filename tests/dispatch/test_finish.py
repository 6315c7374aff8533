"""What becomes of a stored picture when something else happens between the look at the task and its commit."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from server import results
from server.db import Pool
from server.dispatch.finish import Finish
from server.dispatch.picture import Picture
from server.tasks.state import Complete, Fail
from server.tasks.store import NoSuchTask, Standing, TaskStore
from tests.conftest import Connection
from tests.tasks.conftest import User, signed

PICTURE = Picture(b"\x89PNG\r\n\x1a\n" + b"x" * 99, "png")


class Meanwhile(TaskStore):
    """A store in which something happens just after a task was found open."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool, lambda _: None, public_url="", deadline_seconds=900)
        self.happens: Callable[[], Awaitable[object]] | None = None

    async def standing(self, task_id: str, attempt: int) -> Standing:
        found = await super().standing(task_id, attempt)
        if self.happens is not None:
            await self.happens()
        return found


@pytest.fixture
def store(pool: Pool) -> Meanwhile:
    return Meanwhile(pool)


async def begin(store: Meanwhile) -> str:
    user = User()
    return (await store.create(user.claims, user.id, "a boat", b"{}")).task_id


async def test_it_has_failed(store: Meanwhile, tmp_path: Path, owner: Connection) -> None:
    """A picture that comes too late is kept with the ledger, the first one of a run, and goes with its task."""
    task_id = await begin(store)
    store.happens = lambda: store.fail(task_id, Fail(attempt=1, error="cancelled", error_code="x", cancelled=True))
    finish = Finish(store, tmp_path / "r", b"s")
    assert await finish.complete(task_id, 1, PICTURE, signed("one")) == "stale"
    (kept,) = (tmp_path / "r").iterdir()
    assert await store.names(task_id, f"/results/{kept.name}")
    store.happens = None
    another = Picture(PICTURE.data + b"!", "png")
    assert await finish.complete(task_id, 1, another, signed("two")) == "stale"
    assert list((tmp_path / "r").iterdir()) == [kept]
    await owner.execute("delete from public.image_generations")
    assert await owner.fetchval("select name from taskbeam.discarded_pictures") == kept.name


async def test_two_that_are_too_late_at_once(store: Meanwhile, tmp_path: Path) -> None:
    """The second finds the first one kept when its own is stored already: it is taken away again."""
    task_id = await begin(store)
    await store.fail(task_id, Fail(attempt=1, error="x", error_code="x"))
    finish = Finish(store, tmp_path / "r", b"s")

    async def the_other() -> None:
        store.happens = None
        assert await finish.complete(task_id, 1, Picture(PICTURE.data + b"!", "png"), signed("other")) == "stale"

    store.happens = the_other
    assert await finish.complete(task_id, 1, PICTURE, signed("one")) == "stale"
    (kept,) = (tmp_path / "r").iterdir()
    assert await store.names(task_id, f"/results/{kept.name}")


async def test_it_is_gone(store: Meanwhile, tmp_path: Path, owner: Connection) -> None:
    task_id = await begin(store)
    store.happens = lambda: owner.execute("delete from public.image_generations")
    with pytest.raises(NoSuchTask):
        await Finish(store, tmp_path / "r", b"s").complete(task_id, 1, PICTURE, signed("one"))
    assert list((tmp_path / "r").iterdir()) == []


async def test_it_was_completed_with_the_same(store: Meanwhile, tmp_path: Path) -> None:
    task_id = await begin(store)
    finish = Finish(store, tmp_path / "r", b"s")

    async def the_other() -> None:
        store.happens = None
        assert await finish.complete(task_id, 1, PICTURE, signed("another")) == "applied"

    store.happens = the_other
    assert await finish.complete(task_id, 1, PICTURE, signed("one")) == "duplicate"
    (kept,) = (tmp_path / "r").iterdir()
    assert await store.names(task_id, f"/results/{kept.name}")


async def test_nobody_knows_whether_it_was_committed(
    store: Meanwhile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that a task may name is never taken away."""
    task_id = await begin(store)

    async def lost(*_: object, **__: object) -> None:
        raise ConnectionResetError

    monkeypatch.setattr(store, "complete", lost)
    with pytest.raises(ConnectionResetError):
        await Finish(store, tmp_path / "r", b"s").complete(task_id, 1, PICTURE, signed("one"))
    assert len(list((tmp_path / "r").iterdir())) == 1


async def test_what_nobody_will_ever_want_is_not_even_stored(
    store: Meanwhile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = await begin(store)
    await store.complete(task_id, Complete(attempt=1, result="/r"))

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(results, "save", never)
    for attempt in (1, 2):
        assert (
            await Finish(store, tmp_path / "r", b"s").complete(task_id, attempt, PICTURE, signed(f"again{attempt}"))
            == "stale"
        )
    with pytest.raises(NoSuchTask):
        await Finish(store, tmp_path / "r", b"s").complete("nobody", 1, PICTURE, signed("one"))
