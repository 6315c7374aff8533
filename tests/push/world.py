"""A log of one owner's tasks, a bus that anything may happen to, and a client that holds its follower to its promise.

The real Following, Follower, Hub and codec run on it; the log is a list, and nothing here ever waits.
"""

import datetime as dt
from collections.abc import Coroutine
from typing import Any, TypeAlias, TypeVar, cast

import msgspec

from server.auth import LOCAL_USER_ID
from server.push import hub
from server.push.bus import RedisBus
from server.push.follow import Follower, Following
from server.push.publisher import decode, encode
from server.tally import Tally
from server.tasks.histories import History
from server.tasks.overviews import Overview
from server.tasks.reading import HISTORY_CHUNK, TaskReader
from server.tasks.snapshot import Snapshot, TaskChange, from_body
from server.tasks.state import Change, Complete, Fail, Report, Retry, State, advance

T = TypeVar("T")
Step: TypeAlias = tuple[Any, ...]  # what happens, and the particulars
START = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
USER_TOPIC = hub.user_topic(LOCAL_USER_ID)


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """The value of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return cast(T, stop.value)
    raise AssertionError("it waits for something")


def change_of(task_id: str, state: State, seq: int) -> TaskChange:
    snapshot = Snapshot(
        task_id=task_id,
        status=state.status,
        prompt="",
        params=msgspec.Raw(b"{}"),
        progress=state.progress,
        attempt=state.attempt,
        version=state.version,
        status_version=state.status_version,
        created_at=START,
        updated_at=START,
    )
    made = from_body(msgspec.json.encode(snapshot), seq)
    return msgspec.structs.replace(made, user_id=LOCAL_USER_ID)


def change_to(kind: str, state: State) -> Change:
    match kind:
        case "complete":
            return Complete(attempt=state.attempt, result="r")
        case "fail":
            return Fail(attempt=state.attempt, error="e", error_code="c")
        case "retry":
            return Retry(attempt=state.attempt)
        case _:
            return Report(attempt=state.attempt, progress=min(100, state.version))


class World:
    """The log of one owner's tasks, what is under way on the bus, and a follower. Stands in for reader and bus."""

    def __init__(self, chunk: int = HISTORY_CHUNK) -> None:
        self.hub = hub.Hub(lambda _: None, lambda _: None, Tally())
        self.log: list[TaskChange] = []
        self.ever: list[TaskChange] = []  # of tasks that are still there, with what was cut off
        self.trimmed = 0
        self.seq = 0
        self.chunk = chunk  # what one read of the owner's history brings at most
        self.states: dict[str, State] = {}
        self.gone: set[str] = set()
        self.untold: list[str] = []  # of those gone, the ones that no tick has found yet
        self.under_way: list[tuple[str, bytes]] = []
        self.awake = True  # a transport looks once by itself, then when it is woken
        self.reads = 0  # of the log
        self.meanwhile: list[Step] = []  # what happens while the next reads are under way

    def do(self, step: Step) -> None:
        match step:
            case ("change", task_id, kind):
                self._change(task_id, kind)
            case ("delete", task_id):
                if task_id in self.states and task_id not in self.gone:
                    self.untold.append(task_id)
                self.gone.add(task_id)
                self.log = [change for change in self.log if change.task_id != task_id]
                self.ever = [change for change in self.ever if change.task_id != task_id]
            case ("trim", task_id):
                self._trim(task_id)
            case ("bus", at, keep) if self.under_way:
                at %= len(self.under_way)
                topic, data = self.under_way[at] if keep else self.under_way.pop(at)
                self.hub.deliver(topic, decode(topic, data))
            case ("lose", at) if self.under_way:
                self.under_way.pop(at % len(self.under_way))
            case ("tick",):
                self.tick()

    def _trim(self, task_id: str) -> None:
        """What retention.py does with a task that ended a while ago."""
        mine = [change for change in self.log if change.task_id == task_id]
        if len(mine) > 1 and mine[-1].is_terminal:
            self.trimmed = max(self.trimmed, mine[-2].seq)
            self.log = [change for change in self.log if change not in mine[:-1]]

    def _change(self, task_id: str, kind: str) -> None:
        if task_id in self.gone:
            return
        before = self.states.get(task_id)
        after = advance(before, change_to(kind, before)) if before else State()
        if isinstance(after, State):
            self.states[task_id] = after
            self.seq += 1
            made = change_of(task_id, after, self.seq)
            self.log.append(made)
            self.ever.append(made)
            self.under_way += encode(made)

    def tick(self) -> None:
        """What tick.py does with what changed of late; here that is everything."""
        for task_id in self.untold:
            for topic in (hub.task_topic(task_id), USER_TOPIC):
                self.hub.lose(topic, [task_id])
        self.untold.clear()
        for task_id, state in self.states.items():
            topic = hub.task_topic(task_id)
            seen = self.hub.behind(topic, state.version)
            if seen is not None:
                for item in hub.task_items(self._since(task_id, seen), seen):
                    self.hub.deliver(topic, item)
        if self.log and self.hub.behind(USER_TOPIC, self.log[-1].seq) is not None:
            self.hub.nudge(USER_TOPIC)

    def wake(self) -> None:
        self.awake = True

    def _read(self, found: T) -> T:
        """An answer of the database, old by what happened on its way."""
        self.reads += 1
        steps, self.meanwhile = self.meanwhile, []
        for step in steps:
            self.do(step)
        return found

    def _since(self, task_id: str, after: int) -> list[TaskChange]:
        mine = [change for change in self.log if change.task_id == task_id]
        return [c for c in mine if c is mine[-1] or (c.version > after and c.is_status)]

    async def since(self, _: str, task_id: str, after: int) -> History:
        continues = any((change.task_id, change.version) == (task_id, after + 1) for change in self.log)
        return self._read(History(self._since(task_id, after), continues))

    async def all_since(self, _: str, user_id: str, seq: int) -> list[TaskChange]:
        return self._read([change for change in self.log if change.seq > seq][: self.chunk])

    async def overview(self, _: str, user_id: str, task_ids: list[str] | None) -> Overview:
        newest = {change.task_id: change for change in self.log}
        return self._read(Overview(self.seq, self.trimmed, list(newest.values())))

    async def subscribed(self, topic: str, seconds: float) -> None:
        return None

    @property
    def following(self) -> Following:
        return Following(self.hub, cast(RedisBus, self), cast(TaskReader, self))


class Client:
    """Takes what its follower has, only when it was woken, and holds it to the promise as it comes."""

    def __init__(self, world: World, follower: Follower, position: int, *, by_seq: bool) -> None:
        self.world = world
        self.follower = follower
        self.by_seq = by_seq
        self.told = list(follower.first)
        self.deleted: list[str] = []
        # With a cursor, `first` is what lies after it; a snapshot stands for everything up to where it was taken.
        sync_to = int(str(follower.sync.to).lstrip("s"))
        self.start = sync_to if follower.sync.mode == "snapshot" else position
        self.position = max([self.start] if by_seq else [position, *(change.version for change in self.told)])

    def take(self) -> None:
        if not self.world.awake:
            return
        self.world.awake = False
        for item in finish(self.follower.ready()):
            position, change = item.position, item.change
            assert position == (change.seq if self.by_seq else change.version)
            assert position > self.position, "positions strictly rise"
            self.position = position
            self.told.append(change)
        self.deleted += self.follower.deleted()

    def settle(self) -> None:
        """Take until nothing wakes it any more."""
        for _ in range(100):
            if not self.world.awake:
                return
            self.take()
        raise AssertionError("it never comes to rest")

    def rest(self) -> None:
        """Everything has been quiet for a while: one tick, and what it wakes."""
        self.world.meanwhile = []
        self.world.tick()
        self.settle()

    def hold_to_the_promise(self) -> None:
        told = {(change.task_id, change.version) for change in self.told}
        newest = {change.task_id: change.version for change in self.world.log}
        # Who is not told that something could not be recovered, has everything; also what was cut off since.
        for change in self.world.ever if self.follower.sync.recovered else self.world.log:
            if (change.seq if self.by_seq else change.version) <= self.start:
                continue
            last = change.version == newest[change.task_id]
            if last or (change.is_status and change.status != "failed"):  # a failure may be superseded
                assert (change.task_id, change.version) in told, "the newest state and all changes of status"

    def hears_of(self, task_ids: set[str]) -> bool:
        """Whether it was told that these and no others were deleted."""
        return set(self.deleted) == task_ids
