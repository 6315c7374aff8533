"""Who in this process follows what: topics, subscriptions, and the order in which each one hears of changes.

Pure and synchronous: no I/O, no clock. A subscription accepts an item only where it joins what it has; anything
else marks a gap, which its follower fills from Postgres (follow.py). So it does not matter whether the bus
loses, doubles or reorders: a follower sees rising positions, and no change of status is skipped.
"""

from collections.abc import Callable, Iterable, Sequence

import msgspec

from server.push import wire
from server.tally import Tally
from server.tasks.snapshot import TaskChange
from server.tasks.state import TERMINAL

INBOX_MAX = 256
DELETED_MAX = 10_000


class Item(msgspec.Struct, eq=False, gc=False):
    """A change at a `position` (a version, or a number of the owner); none that matters lies after `since`.

    In words: whoever has everything up to `since` may go straight to this one. All who follow the topic are given the
    same item, and the same bytes of it. Compared by identity. A struct, as one is made for each message of the bus.
    """

    position: int
    since: int
    change: TaskChange
    is_status: bool  # as of the change; asked several times for each follower
    many: bool = False  # of a topic of many tasks: the position is a number of the owner
    _event: bytes | None = None
    _chunk: bytes | None = None
    _message: bytes | None = None

    @property
    def cursor(self) -> str:
        return wire.owner_cursor(self.position) if self.many else str(self.position)

    @property
    def event(self) -> bytes:
        """As a server-sent event, encoded once."""
        if self._event is None:
            self._event = wire.sse_change(self.change, self.cursor)
        return self._event

    def chunk(self) -> bytes:
        """As a chunk of a stream of server-sent events, encoded once."""
        data = self._chunk
        if data is None:
            cursor = b"s%d" % self.position if self.many else b"%d" % self.position
            self._chunk = data = wire.sse_chunk(b"status" if self.is_status else b"progress", self.change.body, cursor)
        return data

    def message(self) -> bytes:
        """As a frame of a WebSocket, encoded once."""
        if self._message is None:
            self._message = wire.ws_frame(wire.ws_change(self.change, self.cursor))
        return self._message


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
    version, since = change.version, change.status_version
    is_status = version == since
    return Item(version, version - 1 if is_status else since, change, is_status)


def task_items(changes: Iterable[TaskChange], after: int) -> list[Item]:
    """From the log: `changes` holds every change of status after version `after`, in order.

    A failure that a retry has superseded is history and not told: a follower would take it for the end.
    """
    items: list[Item] = []
    for change in changes:
        if items and items[-1].change.is_terminal:
            after = items.pop().since
        items.append(Item(change.version, after, change, change.is_status))
        after = change.version
    return items


def user_item(change: TaskChange) -> Item:
    """From the bus: the owner's numbers are given out without gaps, so whatever lies before may matter."""
    return Item(change.seq, change.seq - 1, change, change.is_status, many=True)


def user_items(changes: Iterable[TaskChange], after: int) -> list[Item]:
    """From the log: `changes` is all there is after number `after`, in order; a deleted task left a gap."""
    items: list[Item] = []
    for change in changes:
        items.append(Item(change.seq, after, change, change.is_status, many=True))
        after = change.seq
    return items


class Subscription:
    """One follower's place in one topic.

    `wake` is called, from the event loop, when there is something to do, and once for what waits together: whoever is
    woken takes all of it, now or later. It must not subscribe or unsubscribe.
    """

    __slots__ = (
        "_conflated",
        "closing",
        "deleted",
        "gap",
        "inbox",
        "received",
        "special",
        "topic",
        "urgent",
        "wake",
        "withheld",
    )

    def __init__(self, topic: str, after: int, wake: Callable[[], None], conflated: Tally) -> None:
        self.topic = topic
        self.wake = wake
        self._conflated = conflated
        self.inbox: list[Item] | None = None  # most of the time nothing waits
        self.received = after  # everything that matters up to here was put into the inbox
        self.gap = False  # something lies between `received` and what the bus said
        self.closing = False
        self.urgent = False  # more than progress waits
        self.special = True  # there may be more to do than to say what waits; its follower knows when there is not
        self.deleted: tuple[str, ...] = ()  # tasks of this topic that are gone, and were not told of yet
        self.withheld: tuple[str, ...] = ()  # tasks that may not be told of any more

    def offer(self, item: Item) -> None:
        """Take an item in if it joins what is here, else note the gap. Old news is dropped."""
        position, received = item.position, self.received
        if position <= received:
            return
        if item.since > received:
            self._miss()
            return
        if self.withheld and item.change.task_id in self.withheld:
            self.received = position
            return
        inbox = self.inbox
        if inbox is None:  # most of the time
            self.inbox = [item]
        elif not (last := inbox[-1]).is_status and last.change.task_id == item.change.task_id:
            inbox[-1] = item  # the newest progress wins
            self._conflated.value += 1
        elif len(inbox) >= INBOX_MAX:
            self._miss()  # the client does not keep up: the rest is read from the log when there is room
            return
        else:
            inbox.append(item)
        self.received = position
        if item.is_status:
            self.urgent = True
            if item.change.status in TERMINAL:
                self.special = True
            self.wake()
        elif inbox is None:
            self.wake()

    def _miss(self) -> None:
        if not self.gap:
            self.gap = True
            self.attend()

    def attend(self) -> None:
        """There is something to do or to say that is no change of a task."""
        self.special = self.urgent = True
        self.wake()

    def lose(self, task_ids: Sequence[str]) -> None:
        """These tasks were deleted. Beyond a bound it is not told: nothing waits for it but an old page."""
        self.deleted = (*self.deleted, *task_ids)[:DELETED_MAX]
        self.attend()

    def withhold(self, task_id: str) -> bool:
        """As if it was deleted: nothing of it is told that waits, or comes. Whether that is new."""
        if task_id in self.withheld:
            return False
        self.withheld = (*self.withheld, task_id)
        if self.inbox is not None:
            self.inbox = [item for item in self.inbox if item.change.task_id != task_id] or None
        self.lose([task_id])
        return True

    def take(self) -> list[Item]:
        """Everything that waits, in order."""
        items, self.inbox = self.inbox, None
        self.urgent = False
        return items or []

    def close(self) -> None:
        self.closing = True
        self.attend()


class Hub:
    """All subscriptions of a process. `joined` and `left` tell the bus of a topic's first and last one.

    `conflated` counts each change that a follower is not sent because a newer one replaced it.
    """

    def __init__(self, joined: Callable[[str], None], left: Callable[[str], None], conflated: Tally) -> None:
        # Most tasks have one follower, and a set of one is larger than all that it holds.
        self._topics: dict[str, Subscription | set[Subscription]] = {}
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
            self._topics[topic] = subscription
            self._joined(topic)
        elif isinstance(followers, Subscription):
            self._topics[topic] = {followers, subscription}
        else:
            followers.add(subscription)
        self._count += 1
        if self.closing:
            subscription.close()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Idempotent."""
        topic = subscription.topic
        followers = self._topics.get(topic)
        if followers is subscription:
            del self._topics[topic]
            self._left(topic)
        elif isinstance(followers, set) and subscription in followers:
            followers.remove(subscription)
            if len(followers) == 1:
                self._topics[topic] = followers.pop()
        else:
            return
        self._count -= 1

    def deliver(self, topic: str, item: Item) -> None:
        """Offer the item to all who follow the topic."""
        followers = self._topics.get(topic)
        if isinstance(followers, Subscription):
            followers.offer(item)
        elif followers is not None:
            for subscription in followers:
                subscription.offer(item)

    def _followers(self, topic: str) -> Iterable[Subscription]:
        followers = self._topics.get(topic, ())
        return (followers,) if isinstance(followers, Subscription) else followers

    def lose(self, topic: str, task_ids: Sequence[str]) -> None:
        """Tell all who follow the topic that these tasks are gone."""
        for subscription in self._followers(topic):
            subscription.lose(task_ids)

    def behind(self, topic: str, position: int) -> int | None:
        """The lowest position that a follower of the topic has, if it is below `position`, else None."""
        lowest = min((s.received for s in self._followers(topic)), default=position)
        return lowest if lowest < position else None

    def nudge(self, topic: str) -> None:
        """Make every follower of the topic look into the log."""
        for subscription in self._followers(topic):
            subscription._miss()

    def nudge_all(self) -> None:
        """Make every follower look into the log."""
        for topic in self._topics:
            self.nudge(topic)

    def close(self) -> None:
        """The process is going: every follower says goodbye, and new ones do so at once."""
        self.closing = True
        for topic in self._topics:
            for subscription in self._followers(topic):
                subscription.close()
