"""Signed callbacks: how many a second one web process takes, what each costs it, and how long it is to the client."""

import random
import socket
import time
from typing import NamedTuple

from server.bench import machine
from server.bench.callers import Callers, callback
from server.bench.contenders import our_opening
from server.bench.figures import Callbacks, EndToEnd
from server.bench.lane import OPEN_SECONDS_MAX
from server.bench.push import Say
from server.bench.stage import Process, Stage
from server.bench.times import times
from server.bench.viewers import Viewers
from server.push.hub import task_topic

USERS = 200
A_SECOND_MAX = 4_000
CALLBACKS_MAX = 20_000
WARM, WARM_SECONDS_MAX = 200, 10.0
DRAIN_SECONDS_MAX = 5.0
COMMITTED = "select count(*) from public.image_generations where status = 'completed' and task_id = any($1)"
LEDGERED = """select count(distinct task_id) from public.task_deliveries
               where kind = 'callback' and outcome = 'applied' and task_id = any($1)"""


class Plan(NamedTuple):
    streams: int
    seconds: float
    rate: float


def measure_callbacks(stage: Stage, web: Process, seconds: float, say: Say) -> Callbacks:
    """At saturation. Each user follows all his tasks, and another listens on Redis. Raises CannotMeasure."""
    count = min(CALLBACKS_MAX, round(seconds * A_SECOND_MAX)) + WARM
    users = min(USERS, count)
    say(f"signed callbacks, as fast as they are answered, for {seconds:g} s")
    tasks = stage.people(count, -(-count // users))
    viewers = Viewers(web.address)
    viewers.open([our_opening(task, True) for task in {task.user: task for task in tasks}.values()], OPEN_SECONDS_MAX)
    viewers.settle()
    # Those of one user wait for each other, as their numbers rise one by one: so the users take turns.
    random.Random(1).shuffle(tasks)  # noqa: S311  (the same each time)
    requests = [callback(web, task) for task in tasks]
    listener = _Listener(stage.redis_port)
    callers = Callers(web, [viewers, listener])
    try:
        callers.run(requests[:WARM], WARM_SECONDS_MAX)
        warmed = len(callers.sent)
        callers.forget()
        before = machine.cpu_seconds(web.pid)
        taken = callers.run(requests[warmed:], seconds)
        sent = warmed + callers.answered
        _drain(viewers, sent, listener)
        cpu = machine.cpu_seconds(web.pid) - before
    finally:
        callers.close()
    ids = [task.id for task in tasks[:sent]]
    committed, ledgered = stage.ask(COMMITTED, ids), stage.ask(LEDGERED, ids)
    published, delivered = listener.count, viewers.delivered
    viewers.close()
    listener.close()
    return Callbacks(
        sent=sent,
        per_second=callers.answered / taken,
        us=cpu / callers.answered * 1e6,
        committed=committed,
        ledgered=ledgered,
        published=published,
        delivered=delivered,
        lost=sum(abs(sent - found) for found in (committed, ledgered, published, delivered)),
    )


def measure_end_to_end(stage: Stage, web: Process, plan: Plan, say: Say) -> EndToEnd:
    """At a rate: from the callback to the socket of the client that follows the task. Raises CannotMeasure."""
    count = min(plan.streams, round(plan.rate * plan.seconds))  # each stream's task ends once
    say(f"{plan.streams} streams, and {count} callbacks, {plan.rate:g} a second")
    tasks = stage.people(plan.streams)
    random.Random(2).shuffle(tasks)  # noqa: S311  (the same each time)
    viewers = Viewers(web.address)
    viewers.open([our_opening(task, False) for task in tasks], OPEN_SECONDS_MAX)
    viewers.settle()
    arrived: dict[int, float] = {}

    def seen(number: int, data: bytes) -> None:
        if b'"completed"' in data:
            arrived[number] = time.monotonic()

    viewers.seen = seen
    requests = [callback(web, task) for task in tasks[:count]]
    callers = Callers(web, [viewers])
    try:
        callers.run(requests, plan.seconds + 1, plan.rate)
        _drain(viewers, len(callers.sent))
    finally:
        callers.close()
    found = times([at - callers.sent[number] for number, at in arrived.items()])
    lost = abs(len(callers.sent) - viewers.delivered)
    viewers.close()
    p50, p99, p999 = (found.p50_ms, found.p99_ms, found.p999_ms) if found is not None else (0.0, 0.0, 0.0)
    return EndToEnd(plan.streams, plan.rate, len(callers.sent), p50, p99, p999, lost)


class _Listener:
    """Hears every change of a task that is published."""

    _MESSAGE = b"pmessage\r\n"

    def __init__(self, port: int) -> None:
        self._connection = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._connection.sendall(f"PSUBSCRIBE {task_topic('*')}\r\n".encode())
        self._connection.recv(1_024)
        self._connection.setblocking(False)
        self._tail = b""
        self.count = 0

    def fileno(self) -> int:
        return self._connection.fileno()

    def read(self, _: float) -> None:
        """What there is now."""
        while True:
            try:
                data = self._connection.recv(1 << 20)
            except BlockingIOError:
                return
            self.count += (self._tail + data).count(self._MESSAGE)
            self._tail = data[-len(self._MESSAGE) + 1 :]
            if not data:
                return

    def close(self) -> None:
        self._connection.close()


def _drain(viewers: Viewers, events: int, listener: _Listener | None = None) -> None:
    """Until all were delivered, and what was published was heard."""
    deadline = time.monotonic() + DRAIN_SECONDS_MAX
    while time.monotonic() < deadline:
        viewers.read(0.05)
        if listener is not None:
            listener.read(0)
        if viewers.delivered >= events and (listener is None or listener.count >= events):
            return
