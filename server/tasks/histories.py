"""Reads what followers of one task join with, for many callers in one call.

A thousand clients that come back after a restart are a few calls, not a thousand transactions. Row level security
decides each pair of caller and task (sql/007_joins.sql).
"""

from collections.abc import Sequence
from typing import NamedTuple

from server.db import Pool, fetch_alone
from server.tasks import snapshot
from server.tasks.snapshot import TaskChange
from server.tasks.together import Together

PAIRS_A_CALL_MAX = 500


class History(NamedTuple):
    """Changes of a task after a cursor, and whether its log has the next version: else what is older was cut off."""

    changes: list[TaskChange]
    continues: bool


class _Asked(NamedTuple):
    claims: str
    task_id: str
    after: int


class Histories:
    """`read()` is all: it joins what others ask for at the same time."""

    def __init__(self, pool: Pool, *, public_url: str) -> None:
        self._pool = pool
        self._public_url = public_url
        self._together = Together(self._read, batch_max=PAIRS_A_CALL_MAX)

    async def read(self, claims: str, task_id: str, after: int) -> History:
        """The changes of status after version `after`, and always the newest version, last; none if not visible.

        `claims` are the caller's verified claims as JSON text.
        """
        return await self._together.ask(_Asked(claims, task_id, after))

    async def _read(self, batch: Sequence[_Asked]) -> list[History]:
        rows = await fetch_alone(
            self._pool,
            "select place, continues, (change).* from taskbeam.histories($1, $2, $3)",
            [asked.claims for asked in batch],
            [asked.task_id for asked in batch],
            [asked.after for asked in batch],
        )
        found: list[tuple[bool, list[TaskChange]]] = [(False, []) for _ in batch]
        for row in rows:
            place = row["place"] - 1
            changes = found[place][1]
            changes.append(snapshot.from_row(row, self._public_url))
            found[place] = (row["continues"], changes)
        return [History(changes, continues) for continues, changes in found]
