"""The faults of a run, drawn from a seed: the same seed, number and time give the same schedule. Pure.

Faults overlap, but never so that all is down for ever: each ends by itself, one part is broken in one way at a
time, one of the two processes of a kind is always left alone, and Postgres has a while of peace between two.
"""

import random
from typing import NamedTuple

import msgspec

WEB_PLACES = (
    "task.committed",
    "dispatch.taken",
    "dispatch.published",
    "dispatch.sent",
    "change.committed",
    "bus.published",
    "callback.taken",
    "picture.stored",
)
DISPATCHER_PLACES = (
    "message.committed",
    "dispatcher.claimed",
    "dispatcher.delivered",
    "dispatcher.recorded",
)
# The links that can be broken one by one; how many there are of each is the deployment's business.
LINKS = (
    "web0-postgres",
    "web1-postgres",
    "dispatcher0-postgres",
    "dispatcher1-postgres",
    "web0-redis",
    "web1-redis",
    "dispatcher0-redis",
    "dispatcher1-redis",
    "clients-web0",
    "clients-web1",
    "dispatcher-web",
    "dispatcher-generator",
    "generator-web",
    "web-dispatcher",
)


class Kind(NamedTuple):
    """How often a fault is drawn beside the others, how long it lasts, and what it may be about."""

    weight: float
    seconds_min: float
    seconds_max: float
    targets: tuple[str, ...]


WEBS, DISPATCHERS = ("web0", "web1"), ("dispatcher0", "dispatcher1")
KINDS: dict[str, Kind] = {
    "redis.kill": Kind(3, 0.1, 1, ("redis",)),
    "redis.stop": Kind(3, 0.2, 5, ("redis",)),
    "redis.flush": Kind(2, 0, 0, ("redis",)),
    "redis.slow": Kind(3, 0.2, 2, ("redis",)),
    "redis.swallow": Kind(6, 0.2, 3, ("redis-messages",)),
    "redis.double": Kind(6, 0.2, 3, ("redis-messages",)),
    "redis.reorder": Kind(6, 0.2, 3, ("redis-messages",)),
    "postgres.restart": Kind(1, 0, 0.2, ("postgres",)),
    "postgres.kill": Kind(1, 0, 0.2, ("postgres",)),
    "postgres.terminate": Kind(3, 0, 0, ("postgres",)),
    "postgres.readonly": Kind(2, 0.1, 1.5, ("postgres",)),
    "postgres.full": Kind(2, 0.1, 1.5, ("postgres",)),
    "postgres.stall": Kind(2, 0.1, 2, ("postgres",)),
    "web.kill": Kind(2, 0, 0.5, WEBS),
    "web.term": Kind(1, 0, 0.2, WEBS),
    "web.stop": Kind(3, 0.2, 4, WEBS),
    "web.failpoint": Kind(2, 0, 0, WEBS),
    "dispatcher.kill": Kind(1.5, 0, 0.5, DISPATCHERS),
    "dispatcher.term": Kind(1, 0, 0.2, DISPATCHERS),
    "dispatcher.stop": Kind(3, 0.2, 7, DISPATCHERS),
    "dispatcher.failpoint": Kind(1.5, 0, 0, DISPATCHERS),
    "link.cut": Kind(14, 0.05, 0.8, LINKS),
    "link.delay": Kind(10, 0.1, 1.5, LINKS),
    "link.stall": Kind(8, 0.1, 1.5, LINKS),
    "link.forget": Kind(2, 0.1, 0.5, LINKS),
    "callback.late": Kind(6, 0.2, 1, ("callbacks",)),
    "callback.twice": Kind(6, 0.2, 1.5, ("callbacks",)),
    "callback.crossed": Kind(6, 0.2, 1.5, ("callbacks",)),
    "callback.dropped": Kind(4, 0.1, 1, ("callbacks",)),
    "clients.cut": Kind(8, 0, 0, WEBS),
}
# How long a process takes to be back, at most as a rule: its fellow is left alone for so long.
START_SECONDS = 3.0
# A place that is armed is waited for so long once the process is ready, then given up.
FAILPOINT_SECONDS = 5.0
POSTGRES_PEACE_SECONDS = 2.0
LAST_SECONDS = 4.0
TRIES = 50


class Fault(msgspec.Struct, frozen=True):
    """At `at` seconds after the start, for `seconds`; `place` is the failpoint to arm."""

    at: float
    kind: str
    target: str
    seconds: float
    place: str = ""


def plan(seed: int, count: int, seconds: float) -> list[Fault]:
    """`count` faults spread over `seconds`, in order. A draw that finds no place now is drawn again.

    The last one is a Redis that swallows all: from then on nobody goes away by itself and reads what it has missed.
    """
    draw = random.Random(seed)  # noqa: S311  (has to be repeatable)
    busy: dict[str, float] = {}
    turns = {"web": draw.randrange(len(WEB_PLACES)), "dispatcher": draw.randrange(len(DISPATCHER_PLACES))}
    faults: list[Fault] = []
    for number in range(count - 1):
        at = (number + draw.random()) * seconds / count
        for _ in range(TRIES):
            fault = _draw(draw, at)
            if all(busy.get(held, 0.0) <= at for held in _holds(fault)):
                break
        else:
            fault = Fault(at, "clients.cut", draw.choice(WEBS), 0.0)
        if fault.kind.endswith(".failpoint"):
            fault = _with_place(fault, turns)
        until = at + fault.seconds + _after(fault)
        for held in _holds(fault):
            busy[held] = max(busy.get(held, 0.0), until)
        faults.append(fault)
    at = max(seconds, busy.get("redis-messages", 0.0))
    return [*faults, Fault(round(at, 3), "redis.swallow", "redis-messages", LAST_SECONDS)]


def _draw(draw: random.Random, at: float) -> Fault:
    name = draw.choices(list(KINDS), [kind.weight for kind in KINDS.values()])[0]
    kind = KINDS[name]
    # Short ones more often than long ones.
    seconds = kind.seconds_min + (kind.seconds_max - kind.seconds_min) * draw.random() ** 2
    return Fault(round(at, 3), name, draw.choice(kind.targets), round(seconds, 3))


def _with_place(fault: Fault, turns: dict[str, int]) -> Fault:
    """Each place in its turn."""
    which = fault.kind.partition(".")[0]
    places = WEB_PLACES if which == "web" else DISPATCHER_PLACES
    turns[which] += 1
    return msgspec.structs.replace(fault, place=places[turns[which] % len(places)], seconds=FAILPOINT_SECONDS)


def _holds(fault: Fault) -> list[str]:
    """What nothing else may break meanwhile: the part itself; of processes the whole kind, so that one is left."""
    if fault.kind == "clients.cut":
        return []
    if fault.kind in ("redis.slow", "postgres.stall"):
        return [fault.target, *(link for link in LINKS if link.endswith(f"-{fault.target}"))]
    return [fault.target.rstrip("01")] if fault.target in (*WEBS, *DISPATCHERS) else [fault.target]


def _after(fault: Fault) -> float:
    if fault.target == "postgres":
        return POSTGRES_PEACE_SECONDS
    restarts = {"kill": 1, "term": 1, "failpoint": 2}.get(fault.kind.partition(".")[2], 0)
    return restarts * START_SECONDS if fault.target in (*WEBS, *DISPATCHERS) else 0.0
