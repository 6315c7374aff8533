"""New tasks, many in one call; row level security decides each as its own caller (sql/011_together.sql)."""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from server import failpoints
from server.db import ACQUIRE_TIMEOUT_SECONDS, STATEMENT_TIMEOUT_MS, Pool
from server.tasks import snapshot
from server.tasks.commits import Busy
from server.tasks.snapshot import TaskChange
from server.tasks.tickets import UNSPENT_MAX


class NewTask(NamedTuple):
    """In the order of the arrays that taskbeam.accept takes; the last three are of a ticket, if one is kept."""

    claims: str
    user_id: str
    task_id: str
    prompt: str
    params: str
    generator: str | None
    digest: bytes | None
    proven_until: float | None
    lifetime_seconds: float | None


class Accept:
    """The call, for Commits. `publish` must not block."""

    def __init__(self, pool: Pool, publish: Callable[[TaskChange], None], *, public_url: str) -> None:
        self._pool = pool
        self._publish = publish
        self._public_url = public_url

    async def __call__(self, tasks: Sequence[NewTask], patient: bool) -> list[TaskChange | Busy]:
        """Each with its first event, its outgoing message and its ticket. Publishes them."""
        async with (
            self._pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS) as connection,
            asyncio.timeout(STATEMENT_TIMEOUT_MS / 1000),
        ):
            rows = await connection.fetch(
                """select place, (change).* from taskbeam.accept($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)""",
                *zip(*tasks, strict=True),
                UNSPENT_MAX,
                patient,
            )
        failpoints.reached("task.committed")
        if patient and len(rows) < len(tasks):
            raise LookupError("a task was accepted and is not there")
        answers: list[TaskChange | Busy] = [Busy(task.user_id) for task in tasks]
        for row in rows:
            change = snapshot.from_row(row, self._public_url)
            answers[row["place"] - 1] = change
            self._publish(change)
        return answers
