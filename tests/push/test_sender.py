"""What a WebSocket is told while its client does not read, and follows anew meanwhile."""

import asyncio
from typing import Any, cast
from unittest.mock import Mock

import msgspec
import pytest

from server.auth import LOCAL
from server.metrics import Metrics
from server.push.follow import Follower
from server.push.rights import Rights
from server.push.sender import ALL, Feed, Sender, Senders
from server.push.socket import Socket
from server.push.turns import Turns
from tests.push.world import World, finish

pytestmark = pytest.mark.pure


class Slow:
    """A socket whose client reads what it is sent once `reads` is set."""

    ready = False
    over = False

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.told: list[dict[str, Any]] = []

    async def send(self, message: bytes) -> None:
        self.told.append(msgspec.json.decode(message))
        await self.reads.wait()

    @property
    def versions(self) -> list[tuple[str, int]]:
        return [(told["task"]["taskId"], told["task"]["version"]) for told in self.told if "task" in told]


class Here:
    """A connection whose client follows `key`."""

    def __init__(self, world: World, key: str) -> None:
        rights = Mock(spec=Rights)
        rights.enter.return_value = None
        self.world = world
        self.key = key
        self.socket = Slow()
        shared = Senders(world.hub, rights, Turns(asyncio.get_running_loop(), 0), Metrics())
        self.sender = Sender(shared, cast(Socket, self.socket), LOCAL, Mock())

    def follow(self) -> Feed:
        """As ws.py does, also where it is followed already."""
        self.sender.drop(self.key)
        feed = Feed(self.sender, self.key)
        following = self.world.following
        joining = (
            following.all(LOCAL, None, feed.wake) if self.key == ALL else following.task(LOCAL, self.key, 0, feed.wake)
        )
        follower = finish(joining)
        assert isinstance(follower, Follower)
        self.sender.begin(feed, follower)
        return feed

    async def happen(self, *kinds: str, task_id: str = "a") -> None:
        for kind in kinds:
            self.world.do(("change", task_id, kind))
            while self.world.under_way:
                self.world.do(("bus", 0, False))
        await self.settle()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


async def test_a_task_that_is_followed_anew_while_its_end_is_sent_stays_followed() -> None:
    world = World()
    world.do(("change", "a", "report"))
    here = Here(world, "a")
    here.follow()
    await here.settle()
    await here.happen("fail")
    assert here.socket.versions == [("a", 2)]
    await here.happen("retry")
    again = here.follow()
    here.socket.reads.set()
    await here.settle()
    assert here.sender.feeds == {"a": again}
    await here.happen("complete")
    assert here.socket.versions == [("a", 2), ("a", 4)]
    assert here.sender.feeds == {}


async def test_what_waits_of_one_that_was_dropped_is_not_told() -> None:
    here = Here(World(), ALL)
    here.follow()
    await here.settle()
    await here.happen("report")
    await here.happen("report", task_id="b")
    await here.happen("report", task_id="c")
    here.socket.reads.set()
    await here.settle()
    assert here.socket.versions == [("a", 1), ("b", 1), ("c", 1)]

    here.socket.reads.clear()
    for task_id in "abc":
        here.world.do(("change", task_id, "report"))
    while here.world.under_way:
        here.world.do(("bus", 0, False))
    await here.settle()
    assert here.socket.versions[3:] == [("a", 2)]
    here.follow()
    here.socket.reads.set()
    await here.settle()
    assert here.socket.versions[3:] == [("a", 2)], "the new one began with all of it"
    assert list(here.sender.feeds) == [ALL]


async def test_a_task_that_was_deleted_and_is_followed_no_more_is_not_told_of() -> None:
    world = World()
    world.do(("change", "a", "report"))
    here = Here(world, "a")
    here.follow()
    await here.settle()
    await here.happen("report")
    assert here.socket.versions == [("a", 2)]
    here.sender.drop("a")
    world.do(("delete", "a"))
    world.tick()
    here.socket.reads.set()
    await here.settle()
    assert here.socket.told[1:] == []
