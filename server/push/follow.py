"""Follows tasks for one client: subscribe first, then read what was missed, then live.

In that order nothing can fall between: what commits before the read is in the read, what commits after it comes
through the subscription, and what comes twice is dropped by its position. A follower is the same for every
transport; it has no task of its own, its transport waits on `wake`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TypeAlias

import structlog

from server.auth import Caller
from server.db import UNAVAILABLE
from server.errors import Problem
from server.push import hub, wire
from server.push.bus import Bus
from server.push.rights import Right
from server.tasks.reading import HISTORY_CHUNK, TaskReader
from server.tasks.snapshot import TaskChange
from server.tasks.state import TERMINAL

log = structlog.get_logger()

# How long a join waits for Redis to confirm: longer costs a healthy client time, shorter risks one tick.
CONFIRM_SECONDS = 0.25
REREAD_SECONDS = 0.5

# From a follower's position: the items after it, and whether there is more.
Read: TypeAlias = "Callable[[Follower], Awaitable[tuple[list[hub.Item], bool]]]"


# Of a follower that has said how it joined.
JOINED = wire.Sync(0, 0, "live", True)


class Follower:
    """What one client sees of one topic. `sync` says how it joined; `first` are the changes to begin with.

    `right`: until when it may, where it has a right of its own.
    """

    __slots__ = (
        "_following",
        "_read",
        "caller",
        "first",
        "joined_at",
        "only",
        "open",
        "over",
        "right",
        "subscription",
        "sync",
    )

    def __init__(self, following: "Following", subscription: hub.Subscription, read: Read, caller: Caller) -> None:
        self._following = following
        self.subscription = subscription
        self._read = read
        self.caller = caller  # what is read from the log is read as him
        self.right: Right | None = None
        self.sync = JOINED
        self.first: Sequence[TaskChange] = ()
        self.joined_at = 0  # the position up to which all is history: what is above happened while it was followed
        self.over = False  # the task had ended at the cursor: nothing will ever follow
        self.only: frozenset[str] | None = None  # of many tasks, these
        self.open: set[str] | None = None  # of `only`, those not yet finished

    def begun(self) -> Sequence[TaskChange]:
        """The changes to begin with, once: what was said is not kept for as long as the client follows."""
        first, self.first, self.sync = self.first, (), JOINED
        return first

    @property
    def closing(self) -> bool:
        return self.subscription.closing

    @property
    def reader(self) -> TaskReader:
        return self._following.reader

    @property
    def ended(self) -> Problem | None:
        """Why the client may follow no more, once that is so: it is the last thing to say."""
        return self.right.problem if self.right is not None else None

    @property
    def named(self) -> Collection[str]:
        """The tasks it was asked to follow by name; none of a stream of all."""
        if self.only is not None:
            return self.only
        task_id = self.subject.get("task_id")
        return () if task_id is None else (task_id,)

    @property
    def finished(self) -> bool:
        """Whether all the tasks named have ended, and everything up to there was taken."""
        return self.only is not None and not self.open and not self.subscription.gap

    @property
    def ordinary(self) -> bool:
        """Whether there is no more to do than to say what waits: no gap to fill, nothing to leave out, no end."""
        subscription = self.subscription
        return not (
            subscription.gap
            or subscription.closing
            or subscription.deleted
            or self.only is not None
            or (self.right is not None and self.right.news)
        )

    @property
    def company(self) -> int:
        """How many followers this process has."""
        return len(self._following.hub)

    @property
    def subject(self) -> dict[str, str]:
        """What it follows, for a log."""
        return hub.subject(self.subscription.topic)

    def wake_with(self, wake: Callable[[], None]) -> None:
        """From now on `wake` is called when there is something to do, as there may be already."""
        self.subscription.wake = wake
        self.subscription.attend()

    def wake(self) -> None:
        """There is something to say that is of no task."""
        self.subscription.attend()

    def revoke(self, task_id: str) -> bool:
        """The caller may not see this task any more: to him it is deleted. Whether that is new."""
        return self.subscription.withhold(task_id)

    async def ready(self) -> list[hub.Item]:
        """What can be sent now, in order; reads the log where the bus left a gap."""
        if self.behind and not await self.catch_up():
            return []
        return self.take()

    @property
    def behind(self) -> bool:
        """Whether what comes next is only in the log: catch_up() has to come before take()."""
        return self.subscription.gap and not self.subscription.inbox and self.ended is None

    async def catch_up(self) -> bool:
        """Read the log where the bus left a gap. False where that is not possible now: `wake` is called later."""
        subscription = self.subscription
        subscription.gap = False
        try:
            items, more = await self._read(self)
        except UNAVAILABLE as error:
            log.warning("history_unavailable", **self.subject, reason=type(error).__name__)
            subscription.gap = True
            asyncio.get_running_loop().call_later(REREAD_SECONDS, subscription.attend)
            return False
        for item in items:
            subscription.offer(item)
        subscription.gap = subscription.gap or more
        return True

    def take(self) -> list[hub.Item]:
        """What is here, in order; where there is more in the log, `wake` is called at once."""
        items = [item for item in self.subscription.take() if self._wanted(item.change)]
        if self.subscription.gap:
            self.subscription.attend()
        return items

    def deleted(self) -> list[str]:
        """Of the tasks followed, those that were deleted since this was last asked."""
        gone, self.subscription.deleted = self.subscription.deleted, ()
        if self.only is not None:
            gone = tuple(task_id for task_id in gone if task_id in self.only)
            self._unfinished.difference_update(gone)
            self.only = self.only.difference(gone)
        return list(gone)

    def _wanted(self, change: TaskChange) -> bool:
        if self.only is None:
            return True
        if change.task_id not in self.only:
            return False
        if change.status in TERMINAL:
            self._unfinished.discard(change.task_id)
        else:
            self._unfinished.add(change.task_id)
        return True

    @property
    def _unfinished(self) -> set[str]:
        if self.open is None:
            self.open = set()
        return self.open

    def close(self) -> None:
        """Idempotent; every follower must be closed."""
        self._following.hub.unsubscribe(self.subscription)
        self.subscription.wake = _nobody  # who was woken points back to here, and the collector would have to come
        if self.right is not None:
            self.right.leave()


class Following:
    """Opens followers. Everything is read as the caller, so row level security decides what can be followed."""

    def __init__(self, followers: hub.Hub, bus: Bus, reader: TaskReader) -> None:
        self.hub = followers
        self._bus = bus
        self.reader = reader

    async def _subscribe(self, topic: str, after: int, wake: Callable[[], None]) -> hub.Subscription:
        subscription = self.hub.subscribe(topic, after, wake)
        try:
            await self._bus.subscribed(topic, CONFIRM_SECONDS)
        except BaseException:
            self.hub.unsubscribe(subscription)
            raise
        return subscription

    async def task(self, caller: Caller, task_id: str, after: int, wake: Callable[[], None]) -> Follower | None:
        """Follow one task from version `after` (0: from now). None where the caller cannot see such a task."""
        if caller.task_ids is not None and task_id not in caller.task_ids:
            return None

        subscription = await self._subscribe(hub.task_topic(task_id), after, wake)
        follower = Follower(self, subscription, _read_task, caller)
        try:
            # Without a cursor nothing is wanted but the present: only the newest lies after the highest there is.
            changes, continues = await self.reader.since(caller.claims, task_id, after or wire.VERSION_MAX)
        except BaseException:
            follower.close()
            raise
        if not changes:
            follower.close()
            return None
        newest = changes[-1]
        follower.joined_at = newest.version
        unknown = after > newest.version and not newest.is_terminal
        if after == 0 or unknown or (after < newest.version and not continues):
            # Without a cursor, with one that we cannot have sent, or from before what the log still has.
            after = 0
            follower.sync = wire.Sync(after, newest.version, "snapshot", recovered=False)
            follower.first = [newest]
        elif newest.version > after:
            follower.sync = wire.Sync(after, newest.version, "replay", recovered=True)
            follower.first = [item.change for item in hub.task_items(changes, after)]
        else:
            follower.sync = wire.Sync(after, newest.version, "live", recovered=newest.version == after)
        follower.over = newest.is_terminal and newest.version <= after
        _begin(subscription, max(after, newest.version))
        return follower

    async def all(
        self, caller: Caller, after: int | None, wake: Callable[[], None], only: frozenset[str] | None = None
    ) -> Follower | None:
        """Follow all of the caller's tasks, or `only` some, from the number `after` (None: from now).

        None where the caller cannot see one of `only`: a partial answer would tell them apart.
        """
        if caller.task_ids is not None and (only is None or not only <= caller.task_ids):
            return None

        subscription = await self._subscribe(hub.user_topic(caller.user_id), after or 0, wake)
        follower = Follower(self, subscription, _read_all, caller)
        try:
            named = sorted(only) if only else None
            seq, trimmed, tasks = await self.reader.overview(caller.claims, caller.user_id, named)
        except BaseException:
            follower.close()
            raise
        if only is not None:
            if len(tasks) != len(only):
                follower.close()
                return None
            follower.only = only
            follower.open = {task.task_id for task in tasks if not task.is_terminal}
            follower.over = not follower.open and after is not None and after >= max(task.seq for task in tasks)
        follower.joined_at = seq
        cursor = wire.owner_cursor
        if after is None or after > seq or after < trimmed:
            follower.sync = wire.Sync(cursor(after or 0), cursor(seq), "snapshot", recovered=False)
            follower.first = tasks
            _begin(subscription, seq)
        else:
            mode: wire.Mode = "replay" if after < seq else "live"
            follower.sync = wire.Sync(cursor(after), cursor(seq), mode, recovered=True)
            _begin(subscription, after)
            subscription.gap = subscription.gap or after < seq  # history comes in chunks, as the client takes them
        return follower


def _nobody() -> None:
    """Who is woken once a follower is closed."""


# Functions, not closures: a process keeps one for all followers.


async def _read_task(follower: Follower) -> tuple[list[hub.Item], bool]:
    subscription, task_id = follower.subscription, follower.subject["task_id"]
    position = subscription.received
    changes, _ = await follower.reader.since(follower.caller.claims, task_id, position)
    if not changes:
        subscription.lose([task_id])
    return hub.task_items(changes, position), False


async def _read_all(follower: Follower) -> tuple[list[hub.Item], bool]:
    position, caller = follower.subscription.received, follower.caller
    changes = await follower.reader.all_since(caller.claims, caller.user_id, position)
    return hub.user_items(changes, position), len(changes) == HISTORY_CHUNK


def _begin(subscription: hub.Subscription, position: int) -> None:
    """Everything up to `position` was read; what the bus brought meanwhile joins it or is a gap to be filled."""
    early = subscription.take()
    missed = subscription.gap
    subscription.gap = False
    subscription.received = position
    for item in early:
        subscription.offer(item)
    subscription.gap = subscription.gap or missed
