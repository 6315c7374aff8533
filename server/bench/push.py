"""What it costs to push an event: processor time of the server by event delivered, beside the floor and peers.

Changes are published straight to Redis and read from the clients' sockets. Each contender has its own channels and its
own clients; rounds take turns (A B A B), and a ratio is taken between neighbours, as the machine changes meanwhile.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from server.bench import contenders, machine
from server.bench.contenders import Contender, PeerName
from server.bench.figures import Idle, Join, Peer, Push, Pushes
from server.bench.lane import OPEN_SECONDS_MAX, Lane, Load
from server.bench.machine import CannotMeasure
from server.bench.sockets import socket_opening
from server.bench.stage import Stage
from server.bench.times import median, paired_ratio
from server.bench.viewers import Viewers

ROUNDS = 3
PACED_SECONDS = 2.0
WARM_STREAMS = 50
# In that time every stream has its heartbeat; a short run looks for less.
IDLE_SECONDS = 15.0
IDLE_SECONDS_A_SECOND = 30.0
SEQ = "select seq from taskbeam.owners where user_id = $1::uuid"

Say = Callable[[str], None]


# One change at a time to a thousand is enough to do, and nothing can be put together that was not meant to be.
W1 = Load("w1", many=False, window=256, batch=16, rate=2_000)
W2 = Load("w2", many=True, window=1, batch=1, rate=20)
# Progress, as only that waits for more; of a task in turn, as newer progress of the same one would replace it.
W2_COALESCED = Load("w2_coalesced", many=True, window=64, batch=8, rate=20, progress=True)
TASKS_OF_MANY = 20


class Plan(NamedTuple):
    """`streams`, half as many for one channel; `seconds` a round lasts."""

    streams: int
    seconds: float
    floor: bool
    against: tuple[PeerName, ...]


def measure_push(stage: Stage, plan: Plan, say: Say) -> tuple[Pushes, Idle, Join]:
    """Raises CannotMeasure, ChildFailed and BadFrame."""
    rest = _others(stage, plan, say)
    names = "".join(f", {other.name}" for other in rest)
    web = contenders.ours(stage)
    say(f"{plan.streams} streams, each on a channel of its own: taskbeam{names}")
    lanes = [_own_lane(stage, contender, plan.streams) for contender in (web, *rest)]
    sse_bytes, join_us, idle_us = _open_and_look(
        stage, web, lanes[0], min(IDLE_SECONDS, IDLE_SECONDS_A_SECOND * plan.seconds)
    )
    for lane in lanes[1:]:
        lane.open()
    w1 = _compare(W1, lanes, plan)
    _close(lanes)
    web.process.stop()
    coalesced = contenders.ours(stage, STREAM_COALESCE_MS="20")
    ws_bytes = _sockets_bytes(stage, coalesced, plan.streams)
    single = contenders.ours(stage, STREAM_COALESCE_MS="0")
    streams = max(1, plan.streams // 2)
    say(f"{streams} streams on one channel: taskbeam{names}")
    lanes = [_shared_lane(stage, contender, streams) for contender in (single, coalesced, *rest)]
    for lane in lanes:
        lane.open()
    one, together, *shared = lanes
    w2 = _compare(W2, [one, *shared], plan)
    for lane in shared:
        lane.rounds_us.clear()
        lane.lost = 0
    w2_coalesced = _compare(W2_COALESCED, [together, *shared], plan)
    _close(lanes)
    for contender in (single, coalesced, *rest):
        contender.process.stop()
    return Pushes(w1, w2, w2_coalesced), Idle(sse_bytes, ws_bytes, idle_us), Join(join_us)


def _others(stage: Stage, plan: Plan, say: Say) -> list[Contender]:
    peers = contenders.peers(stage, plan.against)
    if not plan.floor:
        return peers
    floor = contenders.floor(stage)
    if floor is None:
        say("no C compiler (`cc`) on this machine: the floor is left out")
        return peers
    return [floor, *peers]


def _own_lane(stage: Stage, contender: Contender, streams: int) -> Lane:
    return Lane(contender, stage.people(streams), streams, many=False)


def _shared_lane(stage: Stage, contender: Contender, streams: int) -> Lane:
    tasks = stage.people(TASKS_OF_MANY, TASKS_OF_MANY)
    return Lane(contender, tasks, streams, many=True, seq=stage.ask(SEQ, tasks[0].user))


def _open_and_look(stage: Stage, web: Contender, lane: Lane, seconds: float) -> tuple[int, float, float]:
    """Bytes a stream, µs of the processor a join, µs a second an idle stream."""
    pid = web.pid()
    _warm_up(stage, web)
    before, taken = machine.resident_bytes(pid), machine.cpu_seconds(pid)
    lane.open()
    streams = len(lane.viewers)
    joins = machine.cpu_seconds(pid) - taken
    bytes_a_stream = (machine.resident_bytes(pid) - before) // streams
    taken = machine.cpu_seconds(pid)
    time.sleep(seconds)
    idle = (machine.cpu_seconds(pid) - taken) / seconds
    return bytes_a_stream, joins / streams * 1e6, idle / streams * 1e6


def _sockets_bytes(stage: Stage, web: Contender, count: int) -> int:
    _warm_up(stage, web)
    before = machine.resident_bytes(web.pid())
    viewers = Viewers(web.process.address)
    try:
        viewers.open([socket_opening(task) for task in stage.people(count)], OPEN_SECONDS_MAX)
        return (machine.resident_bytes(web.pid()) - before) // count
    finally:
        viewers.close()


def _warm_up(stage: Stage, web: Contender) -> None:
    viewers = Viewers(web.process.address)
    viewers.open([web.opening(task, False) for task in stage.people(WARM_STREAMS)], OPEN_SECONDS_MAX)
    viewers.close()


def _compare(load: Load, lanes: list[Lane], plan: Plan) -> Push:
    """The first lane is ours."""
    for lane in lanes:
        lane.warm()
    for _ in range(ROUNDS):
        for lane in lanes:
            lane.round(load, plan.seconds)
    latencies = [lane.pace(load, min(PACED_SECONDS, 2 * plan.seconds)) for lane in lanes]
    mine, checked = lanes[0], sum(lane.viewers.check() for lane in lanes)
    push = Push(
        streams=len(mine.viewers),
        events=mine.events,
        us_per_event=median(mine.rounds_us),
        rounds_us=mine.rounds_us,
        events_per_read=mine.events / max(1, mine.reads),
        lost=mine.lost,
        checked_streams=checked,
    )
    if (own := latencies[0]) is not None:
        push.p50_ms, push.p99_ms, push.p999_ms = own.p50_ms, own.p99_ms, own.p999_ms
    for lane, latency in zip(lanes[1:], latencies[1:], strict=True):
        if lane.lost:
            raise CannotMeasure(f"{lane.contender.name} lost {lane.lost} events of {load.name}")
        ratio = paired_ratio(mine.rounds_us, lane.rounds_us)
        if lane.contender.name == "floor":
            push.floor_us, push.ratio = median(lane.rounds_us), ratio
        push.peers[lane.contender.name] = Peer(median(lane.rounds_us), ratio, latency, lane.contender.version)
    return push


def _close(lanes: Sequence[Lane]) -> None:
    for lane in lanes:
        lane.close()
