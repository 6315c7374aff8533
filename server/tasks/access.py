"""Asks Postgres whether those who follow may still: many in one call, each for itself (sql/009_access.sql)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from server.db import Pool, fetch_alone
from server.tasks.together import Together

ASKED_A_CALL_MAX = 300
# What is asked for all who follow must leave the connections to those who come.
CALLS_MAX = 1

# unknown: where users are entered at their first write; gone: where they are entered by others. None: nobody can tell.
Standing: TypeAlias = Literal["known", "unknown", "gone", "signed_out"] | None


class Whose(NamedTuple):
    """A user, and the session his access token is of, where it names one; both are UUIDs."""

    user_id: str
    session_id: str | None


class _Pair(NamedTuple):
    claims: str
    task_id: str


class Access:
    """What is asked at the same time is answered together. Raises DATABASE_ERRORS."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._standings = Together(self._read_standings, batch_max=ASKED_A_CALL_MAX, calls_max=CALLS_MAX)
        self._pairs = Together(self._read_pairs, batch_max=ASKED_A_CALL_MAX, calls_max=CALLS_MAX)

    async def standing(self, whose: Whose) -> Standing:
        """Whether there is such a user, and his session goes on."""
        return await self._standings.ask(whose)

    async def sees(self, claims: str, task_id: str) -> bool:
        """Whether row level security shows the task to whoever has these claims (JSON text)."""
        return await self._pairs.ask(_Pair(claims, task_id))

    async def _read_standings(self, batch: Sequence[Whose]) -> list[Standing]:
        rows = await fetch_alone(
            self._pool,
            "select standing from taskbeam.standing($1, $2) order by place",
            [whose.user_id for whose in batch],
            [whose.session_id for whose in batch],
        )
        return [row["standing"] for row in rows]

    async def _read_pairs(self, batch: Sequence[_Pair]) -> list[bool]:
        rows = await fetch_alone(
            self._pool,
            "select place from taskbeam.hidden($1, $2) as hidden (place)",
            [pair.claims for pair in batch],
            [pair.task_id for pair in batch],
        )
        hidden = {row["place"] - 1 for row in rows}
        return [place not in hidden for place in range(len(batch))]
