"""What goes after its time, and nothing else: old tasks with their pictures, old logs, and the notes beside them."""

import asyncio
from pathlib import Path

import pytest

from server.db import Pool
from server.dispatch.messages import Messages
from server.metrics import Metrics
from server.retention import LOCK, Retention
from server.tasks.reading import TaskReader
from server.tasks.state import Complete, Report
from tests.conftest import Connection
from tests.dispatch.test_stored_pictures import files
from tests.tasks.conftest import User, store_on

PICTURE = "/results/" + "p" * 43 + ".png"


@pytest.fixture
def user() -> User:
    return User()


@pytest.fixture
def retention(pool: Pool, tmp_path: Path) -> Retention:
    return Retention(pool, tmp_path, Metrics(), tasks_days=30, events_days=7)


async def finished(pool: Pool, owner: Connection, user: User, days: float, result: str = "/r") -> str:
    """A task that was accepted and ended so long ago, after a report."""
    store = store_on(pool, [])
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    await store.report(task_id, Report(attempt=1, progress=50))
    await store.complete(task_id, Complete(attempt=1, result=result))
    await age(owner, task_id, days)
    return task_id


async def age(owner: Connection, task_id: str, days: float) -> None:
    for table, column in (
        ("public.image_generations", "created_at"),
        ("public.image_generations", "updated_at"),
        ("public.task_events", "at"),
        ("taskbeam.dispatches", "created_at"),
    ):
        await owner.execute(
            f"update {table} set {column} = {column} - $2 * interval '1 day' where task_id = $1",  # noqa: S608
            task_id,
            days,
        )


async def tasks_of(owner: Connection) -> set[str]:
    return {row["task_id"] for row in await owner.fetch("select task_id from image_generations")}


async def versions_of(owner: Connection, task_id: str) -> list[int]:
    rows = await owner.fetch("select version from task_events where task_id = $1 order by version", task_id)
    return [row["version"] for row in rows]


async def test_old_tasks_go_with_their_pictures_and_nothing_else_does(
    pool: Pool, owner: Connection, user: User, retention: Retention, tmp_path: Path
) -> None:
    old = await finished(pool, owner, user, 30.1, result=PICTURE)
    await finished(pool, owner, user, 31, result="https://example.com/results/x.png")
    young = await finished(pool, owner, user, 29.9, result="/results/" + "q" * 43 + ".png")
    running = (await store_on(pool, []).create(user.claims, user.id, "a boat", b"{}")).task_id
    await age(owner, running, 90)
    # Made long ago, and tried again yesterday.
    again = await finished(pool, owner, user, 90)
    await owner.execute("update image_generations set updated_at = now() - interval '1 day' where task_id = $1", again)
    # A row of the older app's, that was never accepted here.
    await owner.execute(
        """insert into image_generations (user_id, task_id, prompt, status, result, created_at, updated_at)
           values ($1, 'theirs', 'a boat', 'completed', 'https://example.com/', now() - interval '1 year',
                   now() - interval '1 year')""",
        user.id,
    )
    for name in ("p", "q"):
        (tmp_path / (name * 43 + ".png")).write_bytes(b"picture")
    await retention.turn()
    assert await tasks_of(owner) == {young, running, again, "theirs"}
    assert await owner.fetchval("select count(*) from taskbeam.dispatches") == 3
    assert await versions_of(owner, old) == []
    await retention.turn()
    assert files(tmp_path) == {"q" * 43 + ".png"}
    assert await owner.fetchval("select count(*) from taskbeam.discarded_pictures") == 0


async def test_a_user_who_is_deleted_leaves_no_picture(
    pool: Pool, owner: Connection, user: User, retention: Retention, tmp_path: Path
) -> None:
    await finished(pool, owner, user, 0, result=PICTURE)
    file = tmp_path / PICTURE.removeprefix("/results/")
    file.write_bytes(b"picture")
    await retention.turn()
    assert file.exists()
    await owner.execute("delete from auth.users where id = $1", user.id)
    await retention.turn()
    assert not file.exists()


async def test_a_picture_that_cannot_be_deleted_yet_is_not_forgotten(
    pool: Pool, owner: Connection, user: User, retention: Retention, tmp_path: Path
) -> None:
    await finished(pool, owner, user, 31, result=PICTURE)
    file = tmp_path / PICTURE.removeprefix("/results/")
    file.mkdir()  # no file: unlink fails
    for _ in range(2):
        await retention.turn()
    assert await owner.fetchval("select count(*) from taskbeam.discarded_pictures") == 1
    file.rmdir()
    file.write_bytes(b"picture")
    await retention.turn()
    assert not file.exists()
    assert await owner.fetchval("select count(*) from taskbeam.discarded_pictures") == 0


@pytest.mark.parametrize("how", ["", "on delete restrict", "deferrable initially deferred"])
async def test_a_task_that_other_rows_refer_to_stays_and_holds_up_no_other(
    pool: Pool, owner: Connection, user: User, retention: Retention, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    kept, gone = await finished(pool, owner, user, 40), await finished(pool, owner, user, 35)
    await owner.execute(f"create table favourites (task_id text references image_generations (task_id) {how})")
    await owner.execute("insert into favourites values ($1)", kept)
    await owner.execute("insert into taskbeam.callbacks_seen values ('old', now() - interval '11 minutes')")
    for _ in range(2):
        retention._rest_until = 0
        await retention.turn()
    assert await tasks_of(owner) == {kept}
    assert gone not in await tasks_of(owner)
    said = capsys.readouterr()
    assert (said.out + said.err).count("cannot_delete_task") == 1
    assert (said.out + said.err).count("old_tasks_deleted") == 1
    assert await owner.fetchval("select count(*) from taskbeam.callbacks_seen") == 0, "the rest goes on"
    await owner.execute("drop table favourites")
    retention._rest_until = 0
    await retention.turn()
    assert await tasks_of(owner) == set()


async def test_steps_are_small_and_come_to_the_end(
    pool: Pool, owner: Connection, user: User, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.retention.TASKS_A_STEP", 2)
    retention._tasks_a_step = 2
    for _ in range(5):
        await finished(pool, owner, user, 31)
    assert await retention._delete_tasks()
    assert len(await tasks_of(owner)) == 3
    assert await retention._delete_tasks()
    assert not await retention._delete_tasks()
    assert await tasks_of(owner) == set()
    assert not await retention._delete_tasks(), "it rests after a pass"


async def test_one_process_is_enough(pool: Pool, owner: Connection, user: User, retention: Retention) -> None:
    await finished(pool, owner, user, 31)
    async with owner.transaction():
        await owner.execute("select pg_advisory_xact_lock($1)", LOCK)
        await retention.turn()
        assert len(await tasks_of(owner)) == 1
    await retention.turn()
    assert await tasks_of(owner) == set()


async def test_kept_for_ever(pool: Pool, owner: Connection, user: User, tmp_path: Path) -> None:
    task_id = await finished(pool, owner, user, 4_000)
    await Retention(pool, tmp_path, Metrics(), tasks_days=None, events_days=None).turn()
    assert await versions_of(owner, task_id) == [1, 2, 3]


async def test_the_log_of_what_ended_is_cut_to_its_newest_event(
    pool: Pool, owner: Connection, user: User, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.retention.TASKS_A_STEP", 2)
    old = [await finished(pool, owner, user, 7.5 + 0.1 * n) for n in range(5)]
    young = await finished(pool, owner, user, 6.9)
    reader = TaskReader(pool, public_url="")
    before = (await reader.overview(user.claims, user.id, [])).seq
    await retention.turn()
    assert [await versions_of(owner, task_id) for task_id in old] == [[3]] * 5
    assert await versions_of(owner, young) == [1, 2, 3]
    seq, trimmed, _ = await reader.overview(user.claims, user.id, [])
    assert seq == before
    assert trimmed == 3 * len(old) - 1, "the newest that was cut off"
    # The task itself is as it was, and its cursors say what is gone.
    for cursor, continues in ((1, False), (2, True), (3, False)):
        changes, still = await reader.since(user.claims, old[0], cursor)
        assert ([change.version for change in changes], still) == ([3], continues)
    # Its time comes, too.
    await age(owner, young, 0.2)
    await retention.turn()
    assert await versions_of(owner, young) == [3]


async def test_a_superseded_failure_goes_when_its_task_has_ended(
    pool: Pool, owner: Connection, user: User, retention: Retention
) -> None:
    store = store_on(pool, [])
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    await owner.execute("update image_generations set status = 'failed', error = 'no' where task_id = $1", task_id)
    await owner.execute("update image_generations set status = 'pending' where task_id = $1", task_id)
    await age(owner, task_id, 8)
    await retention.turn()
    assert await versions_of(owner, task_id) == [1, 2, 3], "it is running"
    await store.complete(task_id, Complete(attempt=2, result="/r"))
    await age(owner, task_id, 8)
    await retention.turn()
    assert await versions_of(owner, task_id) == [4]


async def test_one_that_was_tried_again_is_cut_by_its_last_end(
    pool: Pool, owner: Connection, user: User, retention: Retention
) -> None:
    """Its first failure is long ago, and its followers may still come from before its second attempt's end."""
    store = store_on(pool, [])
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    await owner.execute("update image_generations set status = 'failed', error = 'no' where task_id = $1", task_id)
    await age(owner, task_id, 8)
    await owner.execute("update image_generations set status = 'pending' where task_id = $1", task_id)
    await owner.execute("update image_generations set status = 'failed', error = 'no' where task_id = $1", task_id)
    await retention.turn()
    assert await versions_of(owner, task_id) == [1, 2, 3, 4]
    assert (await TaskReader(pool, public_url="").overview(user.claims, user.id, [])).trimmed == 0


async def test_what_somebody_holds_is_cut_later_and_nobody_is_waited_for(
    pool: Pool, owner: Connection, user: User, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, free = await finished(pool, owner, user, 9), await finished(pool, owner, User(), 8)
    async with owner.transaction():
        await owner.execute("select from image_generations where task_id = $1 for update", held)
        async with asyncio.timeout(2):
            await retention.turn()
        assert await versions_of(owner, held) == [1, 2, 3]
        assert await versions_of(owner, free) == [3]
    await retention.turn()
    assert await versions_of(owner, held) == [3]


async def test_what_is_slow_to_delete_goes_in_smaller_steps(
    pool: Pool, owner: Connection, user: User, retention: Retention
) -> None:
    for _ in range(6):
        await finished(pool, owner, user, 31)
    await owner.execute(
        """create function slow() returns trigger language plpgsql as
           $$ begin perform pg_sleep(0.8); return old; end $$;
           create trigger slow before delete on image_generations for each row execute function slow()"""
    )
    for _ in range(4):
        retention._rest_until = 0
        await retention.turn()
        if not await tasks_of(owner):
            break
    assert await tasks_of(owner) == set()


async def test_a_picture_that_another_task_shows_stays(
    pool: Pool, owner: Connection, user: User, retention: Retention, tmp_path: Path
) -> None:
    mine, theirs = [await finished(pool, owner, someone, 0, result=PICTURE) for someone in (user, User())]
    file = tmp_path / PICTURE.removeprefix("/results/")
    file.write_bytes(b"picture")
    await owner.execute("delete from image_generations where task_id = $1", mine)
    await retention.turn()
    assert file.exists()
    await owner.execute("delete from image_generations where task_id = $1", theirs)
    await retention.turn()
    assert not file.exists()


async def test_notes_are_forgotten_in_time(pool: Pool, owner: Connection, retention: Retention, user: User) -> None:
    # A signature is good for five minutes: until then its id must be known, beyond ten it need not be.
    await owner.execute(
        """insert into taskbeam.callbacks_seen (jti, seen_at)
           values ('fresh', now() - interval '6 minutes'), ('old', now() - interval '11 minutes')"""
    )
    await owner.execute(
        """insert into taskbeam.deletions (task_id, user_id, at)
           values ('fresh', $1, now() - interval '23 hours'), ('old', $1, now() - interval '25 hours')""",
        user.id,
    )
    await retention.turn()
    assert [row["jti"] for row in await owner.fetch("select jti from taskbeam.callbacks_seen")] == ["fresh"]
    assert [row["task_id"] for row in await owner.fetch("select task_id from taskbeam.deletions")] == ["fresh"]


async def test_the_dispatcher_keeps_messages_for_a_day_and_dead_letters_for_a_week(
    pool: Pool, owner: Connection
) -> None:
    for state, hours in (
        ("delivered", 23), ("delivered", 25), ("canceled", 23), ("canceled", 25), ("failed", 167), ("failed", 169),
    ):  # fmt: skip
        await owner.execute(
            """insert into dispatcher.messages (id, state, url, max_retries, timeout_ms, finished_at)
               values ($1, $2::text::dispatcher.message_state, 'x', 3, 1000, now() - $3 * interval '1 hour')""",
            f"{state} {hours}",
            state,
            hours,
        )
    await owner.execute(
        "insert into dispatcher.messages (id, url, max_retries, timeout_ms) values ('due', 'x', 3, 1000)"
    )
    await owner.execute(
        """insert into dispatcher.deduplications (id, message_id, expires_at)
           values ('old', 'm', now() - interval '1 s'), ('good', 'm', now() + interval '1 minute')"""
    )
    await Messages(pool, kept_days=None, dead_letters_kept_days=None).clean_up()
    assert await owner.fetchval("select count(*) from dispatcher.messages") == 7
    await Messages(pool, kept_days=1, dead_letters_kept_days=7).clean_up()
    left = {row["id"] for row in await owner.fetch("select id from dispatcher.messages")}
    assert left == {"delivered 23", "canceled 23", "failed 167", "due"}
    assert await owner.fetchval("select id from dispatcher.deduplications") == "good"
