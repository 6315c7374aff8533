"""What clients saw, and what Postgres has: the two sides that the judge compares. Pure.

A follow is one client's pursuit of one task, or of all, over as many connections (legs) as it took.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

import msgspec

from server.tasks.state import TERMINAL

Transport: TypeAlias = Literal["sse", "websocket", "longpoll", "poll"]
TRANSPORTS: tuple[Transport, ...] = ("sse", "websocket", "longpoll", "poll")


class Leg(msgspec.Struct, array_like=True):
    """One connection: to which web process, and the cursor it joined with (0: none), at Unix seconds.

    `recovered` is what the server said about that cursor; polls are not told.
    """

    transport: Transport
    web: int
    cursor: int
    at: float
    recovered: bool | None = None

    @property
    def may_skip(self) -> bool:
        """A poll is answered with the newest state and no other."""
        return self.transport in ("longpoll", "poll")


class Seen(msgspec.Struct, array_like=True, frozen=True):
    """One change as it reached the client; `cursor` is the position it came with among all tasks, 0 where none."""

    task: str
    version: int
    status_version: int
    status: str
    attempt: int
    leg: int
    at: float
    cursor: int = 0

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL


class Follow(msgspec.Struct, array_like=True):
    """`task` is None where all were followed. `left`: it went by itself, and nobody owes it what came later.

    `problems` are answers that no client should ever get.
    """

    number: int
    task: str | None
    legs: list[Leg] = []
    seen: list[Seen] = []
    problems: list[str] = []
    left: bool = False


class Change(msgspec.Struct, frozen=True):
    """A row of task_events; `seq` is its number among the owner's events, `at` its time in Unix seconds."""

    task: str
    version: int
    status_version: int
    status: str
    attempt: int
    seq: int
    at: float

    @property
    def is_status(self) -> bool:
        return self.version == self.status_version


class Log:
    """All changes of one owner, as committed."""

    def __init__(self, changes: Iterable[Change]) -> None:
        self.changes: list[Change] = sorted(changes, key=lambda change: change.seq)
        self._by_task: dict[str, list[Change]] = {}
        for change in self.changes:
            self._by_task.setdefault(change.task, []).append(change)

    @property
    def tasks(self) -> list[str]:
        return list(self._by_task)

    def of(self, task: str) -> Sequence[Change]:
        """The changes of one task, in order; none where there is no such task."""
        return self._by_task.get(task, ())

    def find(self, task: str, version: int) -> Change | None:
        changes = self.of(task)
        return changes[version - 1] if 0 < version <= len(changes) else None

    def is_owed(self, change: Change) -> bool:
        """Whether every follower must see it: a change of status or attempt, but no failure that was retried."""
        superseded = change.status == "failed" and self.of(change.task)[-1].attempt > change.attempt
        return change.is_status and not superseded

    def gaps(self) -> list[str]:
        """Tasks whose versions are not 1, 2, 3 …"""
        return [
            task
            for task, changes in self._by_task.items()
            if [change.version for change in changes] != list(range(1, len(changes) + 1))
        ]
