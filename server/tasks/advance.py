"""Changes of tasks, many in one call: what sql/011_together.sql takes, and what it makes of each."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from server import failpoints
from server.db import ACQUIRE_TIMEOUT_SECONDS, Pool
from server.tasks import snapshot
from server.tasks.commits import Busy
from server.tasks.ledger import DELIVERIES_NOTED_MAX, Said
from server.tasks.snapshot import TaskChange
from server.tasks.state import Complete, Fail, Outcome, Report

Row: TypeAlias = tuple[str | int | bool | None, ...]  # one element of each array that taskbeam.advance takes
UNSAID: tuple[None, None, None] = (None, None, None)


class Advance:
    """The call, for Commits. `publish` must not block; `deadline_seconds` is the time one run may take."""

    def __init__(
        self, pool: Pool, publish: Callable[[TaskChange], None], *, public_url: str, deadline_seconds: float
    ) -> None:
        self._pool = pool
        self._publish = publish
        self._public_url = public_url
        self._deadline_seconds = deadline_seconds

    async def __call__(self, rows: Sequence[Row], patient: bool) -> list[Outcome | Busy | None]:
        """What became of each, of different tasks each; None: there is no such task. Publishes what was applied."""
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS) as connection:
            found = await connection.fetch(
                """select place, outcome, owner_id, (change).* from taskbeam.advance(
                     $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)""",
                *zip(*rows, strict=True),
                self._deadline_seconds,
                DELIVERIES_NOTED_MAX,
                patient,
            )
        failpoints.reached("change.committed")
        answers: list[Outcome | Busy | None] = [None] * len(rows)
        for row in found:
            outcome = row["outcome"]
            if outcome != "busy":
                answers[row["place"] - 1] = outcome
                if row["task_id"] is not None:
                    self._publish(snapshot.from_row(row, self._public_url))
            elif not patient:  # else it was not there yet when the locks were taken
                owner_id = row["owner_id"]
                answers[row["place"] - 1] = Busy(None if owner_id is None else str(owner_id))
        return answers


def row_of(task_id: str, change: Report | Complete | Fail, said: Said | None) -> Row:
    """A change as taskbeam.advance takes it."""
    jti, source, status = UNSAID if said is None else (said.jti, said.kind, said.status)
    if isinstance(change, Report):
        details = (change.progress, change.message, change.preview, change.step, change.steps)
        head = ("report", task_id, change.attempt, change.delivery)
        return (*head, *details, None, None, None, None, jti, source, status)
    delivery = None if said is None else said.delivery
    if isinstance(change, Complete):
        head = ("complete", task_id, change.attempt, delivery)
        return (*head, None, None, None, None, None, change.result, None, None, None, jti, source, status)
    head = ("fail", task_id, change.attempt, delivery)
    end = (change.error, change.error_code, change.cancelled)
    return (*head, None, None, None, None, None, None, *end, jti, source, status)
