"""A contender with its clients: kept busy in rounds, by processor time; and at a fixed rate, by the clock."""

import time
from collections.abc import Sequence
from typing import NamedTuple

from server.bench import machine
from server.bench.changes import STAMP, Changes
from server.bench.contenders import Contender
from server.bench.machine import CannotMeasure
from server.bench.stage import Task
from server.bench.times import Times, times
from server.bench.viewers import Viewers

OPEN_SECONDS_MAX = 120.0
DRAIN_SECONDS_MAX = 5.0
WARM_TRIES = 10
CHECKED = 40


class Load(NamedTuple):
    """`many`: all streams follow the channel of one user. `window`: changes under way at most, so that it is busy and
    no buffer grows; `batch`: in one pipeline. `rate`: changes a second where times are measured. `progress`: of the
    tasks in turn, else changes of status."""

    name: str
    many: bool
    window: int
    batch: int
    rate: float
    progress: bool = False


class Lane:
    """A contender with its clients, for one kind of load."""

    def __init__(self, contender: Contender, tasks: Sequence[Task], streams: int, many: bool, seq: int = 0) -> None:
        self.contender = contender
        self.viewers = Viewers(contender.process.address)
        self.rounds_us: list[float] = []
        self.events = self.reads = self.lost = 0
        self._many = many
        self._streams = streams
        self._tasks = tasks
        self._changes = Changes([(task.id, task.user) for task in tasks], seq=seq)
        self._feed = contender.feed()

    def open(self) -> None:
        followed = [self._tasks[number % len(self._tasks)] for number in range(self._streams)]
        self.viewers.check_every(max(1, self._streams // CHECKED))
        self.viewers.open([self.contender.opening(task, self._many) for task in followed], OPEN_SECONDS_MAX)
        self.viewers.settle()

    def warm(self) -> None:
        """Until a change reaches every stream: not every contender says when it is subscribed."""
        for _ in range(WARM_TRIES):
            self.viewers.settle()
            self._send(1 if self._many else self._streams)
            if self._drain(1 if self._many else self._streams):
                return
        raise CannotMeasure(f"{self.contender.name}: of {self._streams} streams not all are sent what is published")

    def round(self, load: Load, seconds: float) -> None:
        """Keep it busy for so long, and until all was delivered."""
        viewers, fan = self.viewers, self._fan
        viewers.delivered = viewers.reads = 0
        pid, sent = self.contender.pid(), 0
        window, batch = min(load.window, self._streams), min(load.batch, self._streams)
        before, until = machine.cpu_seconds(pid), time.monotonic() + seconds
        while time.monotonic() < until:
            if window - sent + viewers.delivered // fan >= batch:
                self._send(batch, load.progress)
                sent += batch
            viewers.read(0.05)
        self._drain(sent)
        taken = machine.cpu_seconds(pid) - before
        self._note(sent)
        self.rounds_us.append(taken / max(1, viewers.delivered) * 1e6)

    def pace(self, load: Load, seconds: float) -> Times | None:
        """From published to read, at the load's rate."""
        latencies: list[float] = []

        def seen(_: int, data: bytes) -> None:
            now = time.monotonic_ns()
            latencies.extend((now - int(stamp)) / 1e9 for stamp in STAMP.findall(data))

        viewers = self.viewers
        viewers.delivered = viewers.reads = sent = 0
        viewers.seen = seen
        began = time.monotonic()
        while (now := time.monotonic() - began) < seconds:
            due = int(now * load.rate) - sent
            if due > 0:
                self._send(due, load.progress)
                sent += due
            viewers.read(max(0.0, (sent + 1) / load.rate - now))
        self._drain(sent)
        viewers.seen = None
        self._note(sent, reads=False)
        return times(latencies)

    def close(self) -> None:
        self.viewers.close()
        self._feed.close()

    @property
    def _fan(self) -> int:
        return self._streams if self._many else 1

    def _send(self, count: int, progress: bool = False) -> None:
        self._feed.send(self._changes.take(count, progress=progress), self._many)

    def _drain(self, sent: int) -> bool:
        """Whether all of it has come in time."""
        deadline = time.monotonic() + DRAIN_SECONDS_MAX
        while self.viewers.delivered < sent * self._fan and time.monotonic() < deadline:
            self.viewers.read(0.05)
        return self.viewers.delivered == sent * self._fan

    def _note(self, sent: int, *, reads: bool = True) -> None:
        self.lost += abs(sent * self._fan - self.viewers.delivered)
        if reads:
            self.events += self.viewers.delivered
            self.reads += self.viewers.reads
