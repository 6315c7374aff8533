"""Who in this process follows what: topics, subscriptions, and the order in which each one hears of changes.

Pure and synchronous: no I/O, no clock. A subscription accepts an item only where it joins what it has; anything
else marks a gap, which its follower fills from Postgres (follow.py). So it does not matter whether the bus
loses, doubles or reorders: a follower sees rising positions, and no change of status is skipped.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from server.tasks.snapshot import TaskChange

INBOX_MAX = 256
DELETED_MAX = 10_000


class Item(NamedTuple):
    """A change at a `position` (a version, or a number of the owner); none that matters lies after `since`.

    In words: whoever has everything up to `since` may go straight to this one.
    """

    position: int
    since: int
    change: TaskChange


def task_topic(task_id: str) -> str:
    return f"task:{task_id}"


def user_topic(user_id: str) -> str:
    return f"user:{user_id}"


def subject(topic: str) -> dict[str, str]:
    """Whom a log line about this topic is about: {"task_id": …} or {"user_id": …}."""
    kind, _, name = topic.partition(":")
    return {f"{kind}_id": name}


def task_item(change: TaskChange) -> Item:
    """From the bus: before a progress lies its last change of status; before that, who knows what."""
    return Item(change.version, change.version - 1 if change.is_status else change.status_version, change)


def task_items(changes: Iterable[TaskChange], after: int) -> list[Item]:
    """From the log: `changes` holds every change of status after version `after`, in order.

    A failure that a retry has superseded is history and not told: a follower would take it for the end.
    """
    items: list[Item] = []
    for change in changes:
        if items and items[-1].change.is_terminal:
            after = items.pop().since
        items.append(Item(change.version, after, change))
        after = change.version
    return items


def user_item(change: TaskChange) -> Item:
    """From the bus: the owner's numbers are given out without gaps, so whatever lies before may matter."""
    return Item(change.seq, change.seq - 1, change)


def user_items(changes: Iterable[TaskChange], after: int) -> list[Item]:
    """From the log: `changes` is all there is after number `after`, in order; a deleted task left a gap."""
    items: list[Item] = []
    for change in changes:
        items.append(Item(change.seq, after, change))
        after = change.seq
    return items


class Subscription:
    """One follower's place in one topic. `wake` is called, from the event loop, when there is something to do.

    `conflated` is called for each change that a newer one replaces before it was taken.
    """

    __slots__ = ("closing", "conflated", "deleted", "gap", "inbox", "received", "topic", "wake", "withheld")

    def __init__(
        self, topic: str, after: int, wake: Callable[[], None], conflated: Callable[[], None] = lambda: None
    ) -> None:
        self.topic = topic
        self.wake = wake
        self.conflated = conflated
        self.inbox: deque[Item] = deque()
        self.received = after  # everything that matters up to here was put into the inbox
        self.gap = False  # something lies between `received` and what the bus said
        self.closing = False
        self.deleted: tuple[str, ...] = ()  # tasks of this topic that are gone, and were not told of yet
        self.withheld: tuple[str, ...] = ()  # tasks that may not be told of any more

    def offer(self, item: Item) -> None:
        """Take an item in if it joins what is here, else note the gap. Old news is dropped."""
        if item.position <= self.received:
            return
        if item.since > self.received:
            self._miss()
            return
        if item.change.task_id in self.withheld:
            self.received = item.position
            return
        if self.inbox and not self.inbox[-1].change.is_status and self.inbox[-1].change.task_id == item.change.task_id:
            last = self.inbox.pop()  # the newest progress wins
            self.conflated()
            item = Item(item.position, last.since, item.change)
        elif len(self.inbox) >= INBOX_MAX:
            self._miss()  # the client does not keep up: the rest is read from the log when there is room
            return
        self.inbox.append(item)
        self.received = item.position
        self.wake()

    def _miss(self) -> None:
        if not self.gap:
            self.gap = True
            self.wake()

    def lose(self, task_ids: Sequence[str]) -> None:
        """These tasks were deleted. Beyond a bound it is not told: nothing waits for it but an old page."""
        self.deleted = (*self.deleted, *task_ids)[:DELETED_MAX]
        self.wake()

    def withhold(self, task_id: str) -> bool:
        """As if it was deleted: nothing of it is told that waits, or comes. Whether that is new."""
        if task_id in self.withheld:
            return False
        self.withheld = (*self.withheld, task_id)
        kept = [item for item in self.inbox if item.change.task_id != task_id]
        self.inbox.clear()
        self.inbox.extend(kept)
        self.lose([task_id])
        return True

    def take(self) -> list[Item]:
        """Everything that waits, in order."""
        items = list(self.inbox)
        self.inbox.clear()
        return items

    def close(self) -> None:
        self.closing = True
        self.wake()


class Hub:
    """All subscriptions of a process. `joined` and `left` tell the bus of a topic's first and last one.

    `conflated` is called for each change that a follower is not sent because a newer one replaced it.
    """

    def __init__(
        self, joined: Callable[[str], None], left: Callable[[str], None], conflated: Callable[[], None] = lambda: None
    ) -> None:
        self._topics: dict[str, set[Subscription]] = {}
        self._joined = joined
        self._left = left
        self._conflated = conflated
        self.closing = False
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def subscribe(self, topic: str, after: int, wake: Callable[[], None]) -> Subscription:
        subscription = Subscription(topic, after, wake, self._conflated)
        followers = self._topics.get(topic)
        if followers is None:
            self._topics[topic] = {subscription}
            self._joined(topic)
        else:
            followers.add(subscription)
        self._count += 1
        if self.closing:
            subscription.close()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Idempotent."""
        followers = self._topics.get(subscription.topic)
        if followers is None or subscription not in followers:
            return
        followers.remove(subscription)
        self._count -= 1
        if not followers:
            del self._topics[subscription.topic]
            self._left(subscription.topic)

    def deliver(self, topic: str, items: Iterable[Item]) -> None:
        """Offer the items to all who follow the topic."""
        followers = self._topics.get(topic)
        if followers:
            for item in items:
                for subscription in tuple(followers):
                    subscription.offer(item)

    def lose(self, topic: str, task_ids: Sequence[str]) -> None:
        """Tell all who follow the topic that these tasks are gone."""
        for subscription in tuple(self._topics.get(topic, ())):
            subscription.lose(task_ids)

    def behind(self, topic: str, position: int) -> int | None:
        """The lowest position that a follower of the topic has, if it is below `position`, else None."""
        lowest = min((s.received for s in self._topics.get(topic, ())), default=position)
        return lowest if lowest < position else None

    def nudge(self, topic: str) -> None:
        """Make every follower of the topic look into the log."""
        for subscription in tuple(self._topics.get(topic, ())):
            subscription._miss()

    def nudge_all(self) -> None:
        """Make every follower look into the log."""
        for topic in tuple(self._topics):
            self.nudge(topic)

    def close(self) -> None:
        """The process is going: every follower says goodbye, and new ones do so at once."""
        self.closing = True
        for followers in tuple(self._topics.values()):
            for subscription in tuple(followers):
                subscription.close()
