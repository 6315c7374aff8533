"""What can be judged without the log: all that the clients saw together stands for it. Pure.

A change that nobody saw still shows, in the `statusVersion` of what came after it.
"""

from collections.abc import Collection, Iterable, Sequence

import msgspec

from server.clients.judge import Defect, Kind
from server.clients.views import PUSHED, STREAMS, Change, Follow, Leg, Log, Seen

FIRST_BYTES_SECONDS_MAX = 1.0
# Without Redis a change comes within a second, by the tick; the rest is for the way.
LATE_SECONDS_MAX = 3.0
# Heartbeats come every 15 seconds.
HEARTBEAT_SECONDS_MAX = 18.0
UNKNOWN = 2**63


def log_of(follows: Iterable[Follow], tasks: Collection[str]) -> Log:
    """What is known of these tasks, each accepted as pending at version 1.

    Where two views of a version differ, the first one counts, and the other is found untrue.
    """
    known: dict[tuple[str, int], Change] = {}

    def note(task: str, version: int, like: Seen, seq: int) -> None:
        before = known.get((task, version))
        if before is None:
            known[task, version] = Change(task, version, like.status_version, like.status, like.attempt, seq, like.at)
        elif seq < before.seq:
            known[task, version] = msgspec.structs.replace(before, seq=seq)

    for task in tasks:
        note(task, 1, Seen(task, 1, 1, "pending", 1, 0, 0.0), UNKNOWN)
    seen_first = sorted((seen for follow in follows for seen in follow.seen), key=_at)
    for seen in seen_first:
        if seen.task in tasks:
            note(seen.task, seen.version, seen, seen.cursor or UNKNOWN)
            note(seen.task, seen.status_version, seen, UNKNOWN)
    return Log(known.values())


def of_tasks(follow: Follow, tasks: Collection[str]) -> Follow:
    """A view of all tasks without those of others; what it is owed begins where its own view of all did."""
    began = next((seen.cursor for seen in follow.seen if seen.cursor), 0)
    ours = [seen for seen in follow.seen if seen.task in tasks]
    return msgspec.structs.replace(follow, seen=ours, joined=follow.joined or began)


def judge_connections(follow: Follow) -> list[Defect]:
    """What was wrong with how it was connected, whatever came over the connection."""
    saw = {seen.leg for seen in follow.seen}
    found: list[Defect] = []
    for number, leg in enumerate(follow.legs):
        if leg.transport in STREAMS:
            found += _judge_stream(follow, leg)
        if leg.transport in PUSHED and number in saw and leg.recovered is None:
            found.append(_of(follow, leg, "untrue", "to be told how it joined (sync)", "changes at once"))
        if not leg.cursor and leg.recovered:
            found.append(_of(follow, leg, "untrue", "sync to say that a snapshot follows", "recovered: true"))
    return found


def _judge_stream(follow: Follow, leg: Leg) -> Iterable[Defect]:
    if leg.begun_seconds is None and leg.lasted_seconds > FIRST_BYTES_SECONDS_MAX:
        saw = f"none in {leg.lasted_seconds:.1f} s: something on the way buffers the stream"
        yield _of(follow, leg, "late", "the first bytes at once", saw)
    elif leg.begun_seconds is not None and leg.begun_seconds > FIRST_BYTES_SECONDS_MAX:
        saw = f"them after {leg.begun_seconds:.1f} s: something on the way buffers the stream, or the server is slow"
        yield _of(follow, leg, "late", "the first bytes at once", saw)
    elif leg.lasted_seconds > HEARTBEAT_SECONDS_MAX and not leg.heartbeats:
        yield _of(follow, leg, "late", "a heartbeat every 15 s", f"none in {leg.lasted_seconds:.0f} s")
    if leg.unended:
        yield _of(follow, leg, "unended", "the stream to end after the end of its task", "it still open 2 s later")


def judge_transports(follows: Sequence[Follow]) -> list[Defect]:
    """Transports that were tried, and over which nothing came at all."""
    came = {follow.legs[seen.leg].transport for follow in follows for seen in follow.seen}
    tried = {leg.transport for follow in follows for leg in follow.legs}
    return [
        Defect("refused", "of all", "changes over this transport", "not one", transport=transport)
        for transport in sorted(tried - came)
    ]


def ends(follows: Iterable[Follow], tasks: Collection[str]) -> dict[str, float]:
    """When the end of each of these tasks was first seen, in Unix seconds."""
    found: dict[str, float] = {}
    for follow in follows:
        for seen in follow.seen:
            if seen.is_terminal and seen.task in tasks:
                found[seen.task] = min(seen.at, found.get(seen.task, seen.at))
    return found


def lateness(follows: Iterable[Follow], first: dict[str, float]) -> list[tuple[Follow, Seen, float]]:
    """Seconds from the first sight of each end to every other, of those who were connected at the time."""
    return [
        (follow, seen, seen.at - first[seen.task])
        for follow in follows
        for seen in follow.seen
        if seen.is_terminal and seen.task in first and follow.legs[seen.leg].at < first[seen.task]
    ]


def judge_lateness(late: Iterable[tuple[Follow, Seen, float]]) -> list[Defect]:
    """Ends that were pushed and yet came late; a poll is as late as its client asks."""
    return [
        _of(follow, leg, "late", "the end when others saw it", f"it {seconds:.1f} s later", seen.task)
        for follow, seen, seconds in late
        if (leg := follow.legs[seen.leg]).transport in PUSHED and seconds > LATE_SECONDS_MAX
    ]


def _of(follow: Follow, leg: Leg, kind: Kind, expected: str, saw: str, task: str = "") -> Defect:
    return Defect(
        kind,
        task or follow.task or "of all",
        expected,
        saw,
        follow.number,
        leg.transport,
        leg.cursor,
    )


def _at(seen: Seen) -> float:
    return seen.at
