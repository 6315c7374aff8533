"""What clients saw, and what Postgres has: the two sides that the judge compares. Pure.

A follow is one client's pursuit of one task, or of all, over as many connections (legs) as it took.
"""

import bisect
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

import msgspec

from server.tasks.state import TERMINAL

# sse is an EventSource with Last-Event-ID, sse_after a new one or a fetch, with the cursor in the query.
Transport: TypeAlias = Literal["sse", "sse_after", "websocket", "longpoll", "poll"]
TRANSPORTS: tuple[Transport, ...] = ("sse", "sse_after", "websocket", "longpoll", "poll")
PUSHED: tuple[Transport, ...] = ("sse", "sse_after", "websocket")
STREAMS: tuple[Transport, ...] = ("sse", "sse_after")


class Leg(msgspec.Struct, array_like=True):
    """One connection: to which web process, and the cursor it joined with (0: none), at Unix seconds.

    `recovered` is what the server said about that cursor; polls are not told. Of a stream: `begun_seconds` from the
    request to the first bytes (None where none came), `lasted_seconds` from the request to the end of the leg,
    `heartbeats` heard, and `unended`: it was still open a while after the end of its task. `unchanged` counts 304s.
    """

    transport: Transport
    web: int
    cursor: int
    at: float
    recovered: bool | None = None
    begun_seconds: float | None = None
    lasted_seconds: float = 0.0
    heartbeats: int = 0
    unended: bool = False
    unchanged: int = 0

    @property
    def may_skip(self) -> bool:
        """A poll is answered with the newest state and no other."""
        return self.transport not in PUSHED


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
    problems: list[tuple[int, str]] = []
    left: bool = False
    joined: int = 0


class Change(msgspec.Struct, frozen=True):
    """A version of a task; `seq` is its number among the owner's events, `at` its time in Unix seconds."""

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
    """All changes of one owner that are known: as committed, or as far as they were seen from outside."""

    def __init__(self, changes: Iterable[Change]) -> None:
        self.changes: list[Change] = sorted(changes, key=_seq)
        self._by_task: dict[str, list[Change]] = {}
        for change in sorted(self.changes, key=_version):
            self._by_task.setdefault(change.task, []).append(change)
        self._found = {(change.task, change.version): change for change in self.changes}

    @property
    def tasks(self) -> list[str]:
        return list(self._by_task)

    def of(self, task: str) -> Sequence[Change]:
        """The changes of one task, in order; none where there is no such task."""
        return self._by_task.get(task, ())

    def find(self, task: str, version: int) -> Change | None:
        return self._found.get((task, version))

    def between(self, task: str, after: int, before: int) -> Sequence[Change]:
        """The changes of a task with a version above `after` and below `before`."""
        changes = self.of(task)
        begin = bisect.bisect_right(changes, after, key=_version)
        return changes[begin : bisect.bisect_left(changes, before, key=_version)]

    def since(self, after: int, until: int | None) -> Sequence[Change]:
        """All changes with a number above `after`, up to `until`, or to the newest."""
        begin = bisect.bisect_right(self.changes, after, key=_seq)
        end = len(self.changes) if until is None else bisect.bisect_right(self.changes, until, key=_seq)
        return self.changes[begin:end]

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


def _seq(change: Change) -> int:
    return change.seq


def _version(change: Change) -> int:
    return change.version
