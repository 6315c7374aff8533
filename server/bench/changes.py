"""What is published to be pushed: synthetic changes in the product's own form, with the time of sending in them."""

import datetime as dt
import re
import time
from collections.abc import Sequence

import msgspec

from server.tasks.snapshot import Snapshot, TaskChange

# Nanoseconds of the monotonic clock, which all processes of a machine share, where a task has its message.
STAMP = re.compile(rb'"message":"(\d{10,20})"')
_VERSION, _STATUS_VERSION, _MESSAGE = 1_111_111_111, 1_222_222_222, "stamp"


class Changes:
    """The next changes of these tasks, (id, user) each, in turn.

    Changes of status, or progress where it is asked for: that may be replaced by newer progress of the same task with
    nothing between, and then nobody could say whether one that did not come was lost; so it takes two tasks, in turn.
    `seq` is the number that the log of the user has come to; versions rise from 1, which the tasks are at.
    """

    def __init__(self, tasks: Sequence[tuple[str, str]], *, seq: int = 0) -> None:
        self._parts = [_parts(task) for task, _ in tasks]
        self._tasks = tasks
        self._versions = [1] * len(tasks)
        self._status_versions = [1] * len(tasks)
        self._seq = seq
        self._turn = 0

    def take(self, count: int, *, progress: bool = False) -> list[TaskChange]:
        """So many more, made now. `progress`: mere progress, of which each can be told only with two tasks or more."""
        now = time.time()
        stamp = b"%d" % time.monotonic_ns()
        return [self._next(now, stamp, progress) for _ in range(count)]

    def _next(self, now: float, stamp: bytes, progress: bool) -> TaskChange:
        turn = self._turn
        self._turn = (turn + 1) % len(self._tasks)
        self._versions[turn] = version = self._versions[turn] + 1
        if not progress:
            self._status_versions[turn] = version
        status_version = self._status_versions[turn]
        self._seq += 1
        begin, after_message, after_version, end = self._parts[turn]
        body = b"%b%b%b%d%b%d%b" % (begin, stamp, after_message, version, after_version, status_version, end)
        task, user = self._tasks[turn]
        return TaskChange(task, version, status_version, "processing", self._seq, now, body, user)


def _parts(task: str) -> tuple[bytes, bytes, bytes, bytes]:
    """A snapshot, cut where message, version and statusVersion go."""
    now = dt.datetime.now(dt.UTC)
    body = msgspec.json.encode(
        Snapshot(
            task_id=task,
            status="processing",
            prompt="a red fox under the moon, in the style of an old woodcut",
            params=msgspec.Raw(b'{"size":"1024x1024","steps":30}'),
            progress=40,
            message=_MESSAGE,
            step=12,
            steps=30,
            attempt=1,
            version=_VERSION,
            status_version=_STATUS_VERSION,
            created_at=now,
            updated_at=now,
        )
    )
    begin, rest = body.split(_MESSAGE.encode(), 1)
    after_message, rest = rest.split(b"%d" % _VERSION, 1)
    after_version, end = rest.split(b"%d" % _STATUS_VERSION, 1)
    return begin, after_message, after_version, end
