"""What one WebSocket is told of the tasks it follows.

It is written from the turn of the event loop, as it is, most of the time. For what has to wait, for the log or for the
client, and for the last word, there is a task as long as it takes.
"""

import asyncio
import random
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from server.auth import Caller
from server.errors import TaskNotFound, problem_body
from server.metrics import Metrics
from server.push import wire
from server.push.follow import Follower
from server.push.hub import Hub, Item
from server.push.rights import Rights
from server.push.socket import Over, Socket
from server.push.turns import Copies, Outlet, Turns
from server.tasks.snapshot import TaskChange

ALL = "*"


class Feed:
    """What a connection follows under one key: a task's id, or ALL."""

    __slots__ = ("_dirty", "_sender", "follower", "key")

    def __init__(self, sender: "Sender", key: str) -> None:
        self._sender = sender
        self._dirty = False
        self.key = key
        self.follower: Follower | None = None  # not before it was said how it joined, nor after it was dropped

    def wake(self) -> None:
        if self.follower is not None:
            if not self._dirty:
                self._dirty = True
                self._sender.dirty.append(self)
            self._sender.wake()

    def clean(self) -> Follower | None:
        """Its turn has come."""
        self._dirty = False
        return self.follower

    @property
    def urgent(self) -> bool:
        return self.follower is not None and self.follower.subscription.urgent

    @property
    def special(self) -> bool:
        return self.follower is not None and self.follower.subscription.special

    # as rights.Followed

    @property
    def named(self) -> Collection[str]:
        return self.follower.named if self.follower is not None else ()

    def revoke(self, task_id: str) -> bool:
        return self.follower is not None and self.follower.revoke(task_id)


class Senders:
    """What those of a process share."""

    def __init__(self, hub: Hub, rights: Rights, turns: Turns, metrics: Metrics) -> None:
        self.hub = hub
        self.rights = rights
        self.turns = turns
        self.metrics = metrics
        self.copies = Copies(turns, Item.message, metrics.websocket.sent, metrics.send_seconds)


class Sender(Outlet):
    """To be closed. `stop` is called once when nothing follows any more, with why."""

    __slots__ = ("_forwarding", "_presence", "_shared", "_socket", "_stop", "dirty", "feeds", "last_word", "right")

    def __init__(self, shared: Senders, socket: Socket, caller: Caller, stop: Callable[[BaseException], None]) -> None:
        super().__init__(shared.turns)
        self._shared = shared
        self._socket = socket
        self._stop = stop
        self.feeds: dict[str, Feed] = {}
        self.dirty: list[Feed] = []
        self._forwarding: asyncio.Task[None] | None = None
        self.last_word: asyncio.Task[None] | None = None
        # The hub wakes followers when the process goes; a connection that follows nothing needs one as well.
        self._presence = shared.hub.subscribe("presence", 0, self.wake)
        self.right = shared.rights.enter(caller, self.feeds.values(), self.wake)

    def close(self) -> None:
        self._shared.hub.unsubscribe(self._presence)
        if self.right is not None:
            self.right.leave()
        for key in list(self.feeds):
            self.drop(key)
        for task in (self._forwarding, self.last_word):
            if task is not None:
                task.cancel()

    def drop(self, key: str) -> None:
        """Follow it no longer."""
        feed = self.feeds.pop(key, None)
        if feed is not None and feed.follower is not None:
            feed.follower.close()
            feed.follower = None

    def _end(self, feed: Feed) -> None:
        """There is nothing more to come of it. Its key may be another's by now."""
        if self.feeds.get(feed.key) is feed:
            self.drop(feed.key)

    def begin(self, feed: Feed, follower: Follower) -> None:
        """From now on it is told."""
        feed.follower = follower
        self.feeds[feed.key] = feed
        follower.wake()

    @property
    def urgent(self) -> bool:
        news = self.right is not None and self.right.news
        return news or self._presence.urgent or any(feed.urgent for feed in self.dirty)

    def flush(self, now: float) -> None:
        right = self.right
        if self.last_word is not None:
            return
        if right is not None and right.problem is not None:
            self._socket.over = True
            refused = wire.ws_message(wire.Refused([], problem_body(right.problem)))
            self.last_word = self._start(self._socket.end(refused, right.problem.code))
        elif self._forwarding is not None:
            return  # it looks again before it ends
        elif self._presence.closing or (right is not None and right.news):
            self._forwarding = self._start(self._forward())
        elif self.dirty and not self.resting(now):
            if self._socket.ready and not any(feed.special for feed in self.dirty):
                self._write()
            else:
                self._forwarding = self._start(self._forward())

    def abort(self) -> None:
        self._stop(RuntimeError("a defect in writing"))

    def _write(self) -> None:
        """There is nothing to decide."""
        frames = []
        for feed in self.dirty:
            follower = feed.clean()
            items = follower.subscription.take() if follower is not None else ()
            if items:
                frames.append(self._shared.copies.of(items))
        self.dirty.clear()
        if frames:
            self.rest()
            self._socket.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def _start(self, saying: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(saying)
        task.add_done_callback(self._said)
        return task

    def _said(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if task is self.last_word or (error is not None and self.last_word is None):
            self._stop(error or Over())

    async def _forward(self) -> None:
        """All there is to say, in as long as it takes. Raises Over once the process goes, and as Socket.send()."""
        while not self._presence.closing:
            ends_at = self.right.take_warning() if self.right is not None else None
            if ends_at is not None:
                await self._socket.send(wire.ws_message(wire.Expiring(wire.instant(ends_at))))
            if not self.dirty:
                self._forwarding = None
                return
            feed = self.dirty.pop(0)
            follower = feed.clean()
            if follower is not None:
                self.rest()
                await self._tell(feed, follower)
        spread_ms = max(1_000, len(self._shared.hub))
        again_ms = 500 + random.randint(0, spread_ms)  # noqa: S311  (spreads reconnects)
        await self._socket.send(wire.ws_message(wire.Bye("restarting", again_ms)))
        await self._socket.close(1012, "restarting")
        raise Over

    async def _tell(self, feed: Feed, follower: Follower) -> None:
        items = await follower.ready()
        deleted = follower.deleted()
        follower.subscription.special = not follower.ordinary  # what comes from now on is looked at by itself
        for item in items:
            if feed.follower is not follower:
                return  # dropped meanwhile: what it has would come after what a new one has said
            if item.position > follower.joined_at:
                self._shared.metrics.send_seconds.observe(max(0.0, time.time() - item.change.at))
            await self.tell_change(item.change, item.cursor)
            if feed.key != ALL and item.change.is_terminal:
                self._end(feed)
                return
        if not deleted or feed.follower is not follower:
            return
        if feed.key == ALL:
            await self._socket.send(wire.ws_message(wire.Gone(deleted)))
        else:
            self._end(feed)
            await self._socket.send(wire.ws_message(wire.Refused(deleted, problem_body(TaskNotFound()))))

    async def tell_change(self, change: TaskChange, cursor: str) -> None:
        """Raises as Socket.send()."""
        self._shared.metrics.websocket.sent.inc()
        await self._socket.send(wire.ws_change(change, cursor))
