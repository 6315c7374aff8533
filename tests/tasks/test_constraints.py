"""What holds for every row and every change, even for a superuser; and that a user's tasks go with the user."""

import asyncpg
import pytest

from server.tasks.state import Complete, Fail, Report
from server.tasks.store import TaskStore
from tests.conftest import Connection
from tests.tasks.conftest import User

# Changes by somebody who knows versions, so that nothing is put right for them: what is set, and what refuses it.
OPEN_TASK = {
    "status = 'completed'": "taskbeam_outcome",
    "status = 'completed', result = 'r', error = 'e'": "taskbeam_outcome",
    "status = 'failed'": "taskbeam_outcome",
    "status = 'failed', error = 'e', result = 'r'": "taskbeam_outcome",
    "result = 'r'": "taskbeam_outcome",
    "error = 'e'": "taskbeam_outcome",
    "status = 'completed', result = ''": "taskbeam_result",
    "status = 'completed', result = repeat('r', 1000001)": "taskbeam_result",
    "status = 'failed', error = ''": "taskbeam_error",
    "status = 'failed', error = repeat('e', 2001)": "taskbeam_error",
    "status = 'failed', error = 'e', error_code = repeat('c', 65)": "taskbeam_error",
    "progress = 101": "taskbeam_progress",
    "progress = -1": "taskbeam_progress",
    "message = repeat('m', 501)": "taskbeam_report",
    "preview = repeat('é', 16385)": "taskbeam_report",
    "step = -1": "taskbeam_report",
    "steps = 1000001": "taskbeam_report",
    "prompt = ''": "taskbeam_prompt",
    "prompt = repeat('p', 32001)": "taskbeam_prompt",
    "params = '[]'": "taskbeam_params",
    "params = jsonb_build_object('a', repeat('p', 98304))": "taskbeam_params",
    "cancelled = true": "taskbeam_cancelled",
    "status_version = version + 2": "taskbeam_counters",
    "status_version = 0": "taskbeam_counters",
    "delivery = 0": "taskbeam_counters",
    "batch_id = 'a b'": "taskbeam_batch_id",
    "batch_id = repeat('b', 65)": "taskbeam_batch_id",
    "attempt = 2": "taskbeam_guard",
    "task_id = 'other'": "taskbeam_guard",
    "user_id = null": "taskbeam_guard",
    "user_id = gen_random_uuid()": "taskbeam_guard",
}
PROCESSING_TASK = {"status = 'pending'": "taskbeam_guard"}
FAILED_TASK = {
    "error = 'another'": "taskbeam_guard",
    "status = 'processing', error = null": "taskbeam_guard",
    "status = 'completed', error = null, result = 'r'": "taskbeam_guard",
    "status = 'pending', error = null": "taskbeam_guard",  # a retry that does not count
    "status = 'pending', error = null, attempt = 3": "taskbeam_guard",
}
COMPLETED_TASK = {
    "result = 'another'": "taskbeam_guard",
    "status = 'failed', error = 'e', result = null": "taskbeam_guard",
    "status = 'pending', result = null": "taskbeam_guard",
    "status = 'pending', result = null, attempt = 2": "taskbeam_guard",
}


async def _refused(
    subtests: pytest.Subtests, owner: Connection, task_id: str, breaks: dict[str, str], what: str
) -> None:
    for change, constraint in breaks.items():
        with subtests.test(f"{what}: {change}"):
            with pytest.raises(asyncpg.CheckViolationError) as raised:
                await owner.execute(
                    f"update image_generations set version = version + 1, {change} where task_id = $1",  # noqa: S608
                    task_id,
                )
            assert raised.value.constraint_name == constraint


async def test_rows_that_contradict_themselves_are_refused(
    store: TaskStore, owner: Connection, user: User, subtests: pytest.Subtests
) -> None:
    made = [(await store.create(user.claims, user.id, "a boat", b"{}")).task_id for _ in range(4)]
    pending, processing, failed, completed = made
    await store.report(processing, Report(attempt=1))
    await store.fail(failed, Fail(attempt=1, error="e", error_code="c"))
    await store.complete(completed, Complete(attempt=1, result="r"))
    for task_id in (pending, processing):
        await _refused(subtests, owner, task_id, OPEN_TASK, "an open task")
    await _refused(subtests, owner, processing, PROCESSING_TASK, "a task in processing")
    await _refused(subtests, owner, failed, FAILED_TASK, "a failed task")
    await _refused(subtests, owner, completed, COMPLETED_TASK, "a completed task")

    # The limits themselves are taken.
    await owner.execute(
        """update image_generations set version = version + 1, status_version = version + 1, status = 'completed',
             result = repeat('r', 1000000), progress = 100, message = repeat('m', 500), preview = repeat('é', 16384),
             prompt = repeat('p', 32000), batch_id = repeat('b', 64) where task_id = $1""",
        processing,
    )


async def test_versions_rise_by_one(store: TaskStore, owner: Connection, user: User, subtests: pytest.Subtests) -> None:
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    for version in (0, 3, 7):
        with subtests.test(str(version)), pytest.raises(asyncpg.CheckViolationError):
            await owner.execute("update image_generations set version = $1", version)
    await owner.execute("update image_generations set version = 2, message = 'm'")
    assert await owner.fetchval("select array_agg(version order by version) from task_events") == [1, 2]
    # An old version cannot be written into the log either.
    with pytest.raises(asyncpg.UniqueViolationError):
        await owner.execute("insert into task_events select * from task_events where version = 1")
    assert await owner.fetchval("select task_id from image_generations") == task_id


async def test_task_ids(owner: Connection, user: User, subtests: pytest.Subtests) -> None:
    statement = "insert into image_generations (task_id, user_id, prompt) values ($1, $2, 'x')"
    for task_id in ("", "a b", "a:b", "a*", "ä", "a\n", "x" * 129):
        with subtests.test(task_id), pytest.raises(asyncpg.CheckViolationError) as raised:
            await owner.execute(statement, task_id, user.id)
        assert raised.value.constraint_name == "taskbeam_task_id"
    with pytest.raises(asyncpg.NotNullViolationError):
        await owner.execute(statement, None, user.id)
    await owner.execute(statement, "x" * 128, user.id)
    with pytest.raises(asyncpg.UniqueViolationError):
        await owner.execute(statement, "x" * 128, user.id)


async def test_a_row_begins_its_own_log(owner: Connection, user: User) -> None:
    """One that is copied from elsewhere, or arrives already ended, is a task at its version 1."""
    await owner.execute(
        """insert into image_generations (task_id, user_id, prompt, status, result, version, status_version, attempt)
           values ('copied', $1, 'x', 'pending', null, 9, 7, 3), ('done', $1, 'x', 'completed', '/r', 1, 1, 1),
                  ('failed', $1, 'x', 'failed', null, 1, 1, 1)""",
        user.id,
    )
    rows = await owner.fetch(
        "select task_id, status, version, attempt, progress, error from task_events order by task_id"
    )
    assert [tuple(row) for row in rows] == [
        ("copied", "pending", 1, 1, None, None),
        ("done", "completed", 1, 1, 100, None),
        ("failed", "failed", 1, 1, None, "failed for an unknown reason"),
    ]


async def test_a_users_tasks_go_with_the_user(store: TaskStore, owner: Connection, user: User) -> None:
    other = User()
    for who in (user, user, other):
        task_id = (await store.create(who.claims, who.id, "a boat", b"{}")).task_id
        await store.report(task_id, Report(attempt=1, progress=5))

    async def counts() -> list[int]:
        return [
            await owner.fetchval(f"select count(*) from {table}")  # noqa: S608
            for table in ("image_generations", "task_events", "taskbeam.dispatches", "taskbeam.owners")
        ]

    assert await counts() == [3, 6, 3, 2]
    await owner.execute("delete from auth.users where id = $1", user.id)
    assert await counts() == [1, 2, 1, 1]
    # A user who comes back begins anew.
    assert (await store.create(user.claims, user.id, "a boat", b"{}")).seq == 1


async def test_a_task_that_is_deleted_takes_its_log_along(store: TaskStore, owner: Connection, user: User) -> None:
    """As service_role, which may delete; the owner's numbers go on from where they were."""
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    await owner.execute("set role service_role")
    assert await owner.execute("delete from image_generations where task_id = $1", task_id) == "DELETE 1"
    await owner.execute("reset role")
    assert await owner.fetchval("select count(*) from task_events") == 0
    assert await owner.fetchval("select count(*) from taskbeam.dispatches") == 0
    assert (await store.create(user.claims, user.id, "a boat", b"{}")).seq == 2
