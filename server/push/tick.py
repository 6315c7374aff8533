"""The tick: once a second, ask Postgres what was committed since the last one, and hand followers what they lack.

It always runs, Redis healthy or not, because a bus that confirms SUBSCRIBE and then delivers nothing cannot be
told from a quiet one. One light query over the changes since, whatever the number of followers; a second one only
for what turns out to be missing.

Not over a window of time: a transaction may last, and a COMMIT hang, for longer than any window. The log knows the
transaction of each event, and Postgres which of them were open (reading.changed_since()).
"""

import asyncio
import contextlib

import structlog

from server.db import DATABASE_ERRORS
from server.metrics import Metrics
from server.push import hub
from server.tasks.reading import Gone, Recent, TaskReader
from server.tasks.snapshot import TaskChange

log = structlog.get_logger()

PERIOD_SECONDS = 1.0
POKED_SECONDS = 0.01
FAILED_SECONDS = 0.2
NOTICED_MAX = 10_000
# Where the trigger in sql/003 tells of changes that others made to tasks, and publisher.py of ours without Redis.
NOTICE_CHANNEL = "taskbeam"


class Tick:
    """`poke()` makes the next tick come at once; `noticed()` has one task looked at."""

    def __init__(self, reader: TaskReader, followers: hub.Hub, metrics: Metrics) -> None:
        self._reader = reader
        self._hub = followers
        self._metrics = metrics
        self._poked = asyncio.Event()
        self._due = 0.0
        self._since = ""
        self._noticed: set[str] = set()

    def poke(self) -> None:
        self._due = 0.0
        self._poked.set()

    def noticed(self, payload: str) -> None:
        """A task has changed: `payload` is "task_id version", or "" when notices may have been lost.

        It is looked at by name, at once.
        """
        if not payload or len(self._noticed) >= NOTICED_MAX:
            self._due = 0.0
        else:
            self._noticed.add(payload.rpartition(" ")[0])
        self._poked.set()

    async def begin(self) -> None:
        """Before anything is followed: what is committed by now, a follower reads by itself. Raises DATABASE_ERRORS."""
        self._since = await self._reader.now()

    async def run(self) -> None:
        """Until cancelled, after begin()."""
        loop = asyncio.get_running_loop()
        failing = False
        while True:
            try:
                if loop.time() >= self._due:
                    self._due = loop.time() + PERIOD_SECONDS
                    await self._look_back()
                if self._noticed:
                    await self._look_at_noticed()
                failing = False
            except DATABASE_ERRORS as error:
                self._metrics.tick_failures.inc()
                if not failing:
                    log.warning("tick_failed", reason=type(error).__name__)
                failing = True
                await asyncio.sleep(FAILED_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._due - loop.time())):
                    await self._poked.wait()
                await asyncio.sleep(POKED_SECONDS)  # what comes together is looked at together
            self._poked.clear()

    async def _look_back(self) -> None:
        now, recent, deleted = await self._reader.changed_since(self._since)
        if _count(now) < _count(self._since):
            self._hub.nudge_all()  # another cluster, or this one from a backup: its transactions are counted anew
        self._metrics.tick_catches.inc(await self._tell(recent))
        self._tell_deleted(deleted)
        self._since = now  # only now: what could not be told is looked for again

    async def _look_at_noticed(self) -> None:
        noticed, self._noticed = self._noticed, set()
        try:
            await self._tell(await self._reader.newest(sorted(noticed)))
        except BaseException:
            self._noticed |= noticed
            raise

    async def _tell(self, recent: list[Recent]) -> int:
        """Hand followers what they lack of it; the number of topics they lacked something of."""
        nudged = 0
        missing: dict[str, int] = {}
        for change in recent:
            seen = self._hub.behind(hub.task_topic(change.task_id), change.version)
            if seen is not None:
                missing[change.task_id] = seen
            topic = hub.user_topic(change.user_id)
            if self._hub.behind(topic, change.seq) is not None:
                nudged += 1
                self._hub.nudge(topic)
        if not missing:
            return nudged
        by_task: dict[str, list[TaskChange]] = {}
        for task_change in await self._reader.missed(missing):
            by_task.setdefault(task_change.task_id, []).append(task_change)
        for task_id, changes in by_task.items():
            for item in hub.task_items(changes, missing[task_id]):
                self._hub.deliver(hub.task_topic(task_id), item)
        return nudged + len(missing)

    def _tell_deleted(self, deleted: list[Gone]) -> None:
        by_user: dict[str, list[str]] = {}
        for task_id, user_id, end in deleted:
            if end is not None:  # the log it would be read from is gone with the task
                self._hub.deliver(hub.task_topic(task_id), hub.Item(end.version, 0, end, end.is_status))
            self._hub.lose(hub.task_topic(task_id), [task_id])
            by_user.setdefault(user_id, []).append(task_id)
        for user_id, task_ids in by_user.items():
            self._hub.lose(hub.user_topic(user_id), task_ids)


def _count(snapshot: str) -> int:
    """The first transaction that a Postgres snapshot knows nothing of."""
    return int(snapshot.split(":")[1])
