"""When a client is written to: a model of the world in which streams rest between writes, on a clock of its own."""

import asyncio
import heapq
import re
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple, cast

import pytest

from server.auth import LOCAL
from server.metrics import Metrics
from server.push.sse import Framer
from server.push.stream import Pulse, Stream, Streams
from server.push.turns import PARTS, Outlet, Turns
from server.tasks.snapshot import from_body
from tests.push.test_stream import Transport
from tests.push.world import Client, Step, World, finish

pytestmark = pytest.mark.pure

WINDOW_MS = 20
KINDS = ("progress", "progress", "progress", "progress", "complete", "fail", "retry")


class Loop:
    """The clock of an event loop, in seconds, that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, int, Callable[[], None]]] = []
        self.soon: list[Callable[[], None]] = []
        self.armed = 0

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        self.armed += 1
        heapq.heappush(self.timers, (self.now + delay, self.armed, callback))

    def turn(self) -> None:
        while self.soon:
            soon, self.soon = self.soon, []
            for callback in soon:
                callback()

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        self.turn()
        while self.timers and self.timers[0][0] <= until:
            self.now, _, callback = heapq.heappop(self.timers)
            callback()
            self.turn()
        self.now = until


class Write(NamedTuple):
    at: float
    data: bytes


class Timed(Transport):
    """Notes when it was written to."""

    def __init__(self, loop: Loop, room: int = 10**9) -> None:
        super().__init__(room)
        self.loop = loop
        self.writes: list[Write] = []

    def write(self, data: bytes) -> None:
        assert not self.full, "it has said that it is full"
        super().write(data)
        self.writes.append(Write(self.loop.now, data))


class Followed:
    """A stream as it is served, over the world's follower."""

    def __init__(self, world: World, loop: Loop, *, many: bool, room: int = 10**9) -> None:
        following = world.following
        joining = following.all(LOCAL, 0, lambda: None) if many else following.task(LOCAL, "a", 0, lambda: None)
        follower = finish(joining)
        assert follower is not None
        self.metrics = Metrics()
        self.judge = Client(world, follower, 0, by_seq=many)
        self.transport = Timed(loop, room)
        self.turns = Turns(loop, WINDOW_MS)
        self.stream = Stream(
            cast(asyncio.Transport, self.transport),
            set(),
            follower,
            Framer(follower, many, self.metrics),
            Streams(self.turns, Pulse(), self.metrics),
        )
        self.transport.stream = self.stream
        self.stream.begin()

    def told(self) -> list[tuple[int, Any]]:
        """Each event after the first write: its position, and its change."""
        events = re.findall(rb"id: s?(\d+)\nevent: \w+\ndata: (.*)\n\n", self.body_of(self.transport.writes[1:]))
        return [(int(position), from_body(data, int(position))) for position, data in events]

    @staticmethod
    def body_of(writes: list[Write]) -> bytes:
        transport = Transport(10**9)
        transport.written = b"".join(write.data for write in writes)
        return transport.body


async def settle(loop: Loop) -> None:
    """What reads the log is a task of the real event loop."""
    for _ in range(4):
        loop.turn()
        await asyncio.sleep(0)
    loop.turn()


@pytest.mark.parametrize("many", [False, True], ids=["one task", "all tasks of a user"])
async def test_whatever_happens_and_when(many: bool) -> None:
    for seed in range(300):
        rng = Random(seed)
        world, loop = World(), Loop()
        tasks = ("a", "b", "c") if many else ("a",)
        world.do(("change", "a", "-"))
        world.under_way.clear()
        room = rng.choice([1, 1_000, 10**9, 10**9])
        here = Followed(world, loop, many=many, room=room)
        joined = world.reads
        await settle(loop)
        for _ in range(rng.randint(5, 40)):
            step: Step = rng.choice(
                [
                    ("change", rng.choice(tasks), rng.choice(KINDS)),
                    ("change", rng.choice(tasks), "progress"),
                    ("bus", rng.randrange(4), rng.random() < 0.2),
                    ("bus", 0, False),
                    ("bus", 0, False),
                    ("lose", rng.randrange(9)) if rng.random() < 0.2 else ("tick",) if rng.random() < 0.1 else ("-",),
                ]
            )
            world.do(step)
            await settle(loop)
            if rng.random() < 0.5:
                loop.advance(rng.choice([0.001, 0.004, 0.011, 0.03]))
                await settle(loop)
            if rng.random() < 0.3:
                here.transport.drain()
                await settle(loop)
            if here.transport.closed:
                break
        world.tick()
        await settle(loop)
        loop.advance(WINDOW_MS / 1000 * (1 + 1 / PARTS))
        await settle(loop)
        while here.transport.full and not here.transport.closed:
            here.transport.drain()
            await settle(loop)
            loop.advance(WINDOW_MS / 1000 * (1 + 1 / PARTS))
            await settle(loop)
        told = here.told()
        positions = [position for position, _ in told]
        assert positions == sorted(set(positions)), f"seed {seed}: strictly rising"
        here.judge.told += [change for _, change in told]
        if not here.transport.closed:
            here.judge.hold_to_the_promise()
        else:
            assert not many
            assert [change.is_terminal for _, change in told][-1], "the end comes last"
        assert sum(change.is_terminal for _, change in told) <= 1 or many, f"seed {seed}: and once"
        early = [
            after
            for before, after in zip(here.transport.writes[1:], here.transport.writes[2:], strict=False)
            if after.at - before.at < WINDOW_MS / 1000 - 1e-9 and b"event: status" not in after.data
        ]
        # What was found in the log does not wait once more, nor what the client did not read.
        assert len(early) <= world.reads - joined or room < 10**9, f"seed {seed}: progress within the window"


async def test_the_first_at_once_then_the_newest_when_the_window_is_over_and_a_status_without_waiting() -> None:
    world, loop = World(), Loop()
    world.do(("change", "a", "-"))
    world.do(("change", "a", "progress"))
    world.under_way.clear()
    here = Followed(world, loop, many=False)
    await settle(loop)

    def brought() -> list[list[int]]:
        """The versions in each write since the first."""
        return [[int(v) for v in re.findall(rb"id: (\d+)", write.data)] for write in here.transport.writes[1:]]

    async def happens(kind: str) -> None:
        world.do(("change", "a", kind))
        while world.under_way:
            world.do(("bus", 0, False))
        await settle(loop)

    await happens("progress")
    assert brought() == [[3]], "at once"
    for _ in range(3):
        await happens("progress")
    assert brought() == [[3]]
    loop.advance(0.019)
    assert brought() == [[3]], "not before the window is over"
    loop.advance(0.006)
    assert brought() == [[3], [6]], "then the newest"
    await happens("progress")
    await happens("complete")
    assert brought() == [[3], [6], [8]], "the end waits for nothing, and stands for what it was waiting with"
    assert here.transport.closed
    assert here.metrics.sse.sent.value == 1 + 3
    await settle(loop)


async def test_a_stream_at_rest_costs_no_timer_and_all_that_wait_share_one() -> None:
    loop = Loop()
    turns = Turns(loop, WINDOW_MS)

    class Waiting(Outlet):
        urgent = False
        flushed = 0

        def flush(self, now: float) -> None:
            if not self.resting(now):
                self.rest()
                self.flushed += 1

        def abort(self) -> None:
            raise AssertionError

    outlets = [Waiting(turns) for _ in range(500)]
    for outlet in outlets:
        outlet.wake()
    assert len(loop.soon) == 1, "one callback for all"
    loop.turn()
    assert ([outlet.flushed for outlet in outlets], loop.armed) == ([1] * 500, 0)
    for outlet in outlets:
        outlet.wake()
        outlet.wake()
    loop.turn()
    assert ({outlet.flushed for outlet in outlets}, loop.armed) == ({1}, 1)
    loop.advance(0.025)
    assert ({outlet.flushed for outlet in outlets}, loop.armed) == ({2}, 1)
    loop.advance(1.0)
    assert loop.armed == 1, "nobody waits any more"


def test_a_defect_in_one_does_not_keep_the_others() -> None:
    loop = Loop()
    turns = Turns(loop, 0)
    done: list[str] = []

    class Named(Outlet):
        urgent = False

        def __init__(self, name: str) -> None:
            super().__init__(turns)
            self.name = name

        def flush(self, now: float) -> None:
            if self.name == "broken":
                raise ValueError
            done.append(self.name)

        def abort(self) -> None:
            done.append("aborted")

    for name in ("a", "broken", "b"):
        Named(name).wake()
    loop.turn()
    assert done == ["a", "aborted", "b"]


async def test_all_who_wait_for_the_same_are_given_the_same_bytes_and_each_is_counted() -> None:
    world, loop, metrics = World(), Loop(), Metrics()
    for task_id in ("a", "b"):
        world.do(("change", task_id, "-"))
    world.under_way.clear()
    turns = Turns(loop, WINDOW_MS)
    streams = Streams(turns, Pulse(), metrics)
    transports = []
    for _ in range(250):
        follower = finish(world.following.all(LOCAL, None, lambda: None))
        assert follower is not None
        transport = Timed(loop)
        stream = Stream(cast(asyncio.Transport, transport), set(), follower, Framer(follower, True, metrics), streams)
        transport.stream = stream
        stream.begin()
        transports.append(transport)
    await settle(loop)
    began = metrics.sse.sent.value
    for _ in range(2):  # the first at once, the next two together
        for task_id in ("a", "b"):
            world.do(("change", task_id, "progress"))
            world.do(("change", task_id, "progress"))
        while world.under_way:
            world.do(("bus", 0, False))
        await settle(loop)
        loop.advance(0.025)
    last = [transport.writes[-1].data for transport in transports]
    assert len(set(map(id, last))) <= 3, "made once for a hundred of them"
    assert set(last) == {last[0]}
    assert last[0].count(b"\nevent: progress\n") == 2
    assert metrics.sse.sent.value - began == 250 * sum(
        write.data.count(b"event: progress") + write.data.count(b"event: status") for write in transports[0].writes[1:]
    )
    text = (await metrics.exposition()).decode()
    counted = re.search(r"^taskbeam_commit_to_send_seconds_count (\S+)$", text, re.M)
    assert counted is not None
    assert float(counted[1]) == metrics.sse.sent.value - began
