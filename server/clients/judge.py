"""Says what a client should have seen and did not, or should not have seen and did. Pure.

lost: a change of status or attempt after the cursor never seen, the newest state unseen at the end, a cursor that
the server could not continue. repeated: a version seen before, or anything after the end of an attempt. reordered: a
version below the one before. untrue: what is not in the log so. refused: an answer that no client should get. open:
a task without an end. Besides, of a connection: late: what has to come at once did not. unended: a stream that went on.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, TypeAlias

import msgspec

from server.clients.views import Change, Follow, Leg, Log, Seen

Kind: TypeAlias = Literal["lost", "repeated", "reordered", "untrue", "refused", "open", "late", "unended"]
# What is found in views and log.
KINDS: tuple[Kind, ...] = ("lost", "repeated", "reordered", "untrue", "refused", "open")


class Defect(msgspec.Struct, frozen=True):
    """`cursor` is the one of the connection on which it showed."""

    kind: Kind
    task: str
    expected: str
    saw: str
    follow: int = 0
    transport: str = ""
    cursor: int = 0

    def __str__(self) -> str:
        who = f"follower {self.follow} over {self.transport} from cursor {self.cursor}: " if self.transport else ""
        return f"{self.kind}: task {self.task}: {who}expected {self.expected}, saw {self.saw}"


def judge(follow: Follow, log: Log) -> list[Defect]:
    """The defects of one follow, judged after quiet; none when all was as promised."""
    found = [_defect("refused", follow, leg, "an answer", problem) for leg, problem in follow.problems]
    for number, leg in enumerate(follow.legs):
        if leg.cursor and leg.recovered is False:
            found.append(_defect("lost", follow, number, "to be continued from the cursor", "a snapshot"))
    found += _judge_one(follow, log) if follow.task is not None else _judge_all(follow, log)
    return found


def judge_log(log: Log) -> list[Defect]:
    """What is wrong with the tasks themselves: still open, or changed after their end."""
    still = [change for task in log.tasks if not _is_terminal(change := log.of(task)[-1])]
    found = [Defect("open", change.task, "a terminal state", _told(change)) for change in still]
    for task in log.tasks:
        for change, after in pairwise(log.of(task)):
            if _is_terminal(change) and after.attempt == change.attempt:
                found.append(Defect("untrue", task, f"{_told(change)} to be the end", _told(after)))
    return found


def judge_gaps(log: Log) -> list[Defect]:
    """Of a log that is whole: tasks with holes in their versions."""
    return [Defect("untrue", task, "versions without gaps", "a gap in the log") for task in log.gaps()]


class _Progress:
    """What a follower has seen of one task."""

    def __init__(self) -> None:
        self.last = 0
        self.versions: set[int] = set()
        self.ended: set[int] = set()

    def take(self, seen: Seen) -> tuple[Kind, str] | None:
        """Whether it may come now; else which defect it is, and what was expected."""
        wrong: tuple[Kind, str] | None = None
        if seen.version in self.versions:
            wrong = "repeated", f"a version above {self.last}"
        elif seen.version < self.last:
            wrong = "reordered", f"a version above {self.last}"
        elif seen.attempt in self.ended:
            wrong = "repeated", f"nothing after the end of attempt {seen.attempt}"
        self.versions.add(seen.version)
        self.last = max(self.last, seen.version)
        if seen.is_terminal:
            self.ended.add(seen.attempt)
        return wrong


def _judge_one(follow: Follow, log: Log) -> Iterator[Defect]:
    task = follow.task or ""
    changes = log.of(task)
    progress = _Progress()
    for seen in follow.seen:
        yield from _untrue(follow, log, seen)
        before = progress.last
        wrong = progress.take(seen)
        if wrong is not None:
            yield _defect(wrong[0], follow, seen.leg, wrong[1], _told(seen), task)
        elif before and not follow.legs[seen.leg].may_skip:
            for change in log.between(task, before, seen.version):
                if log.is_owed(change):
                    yield _defect("lost", follow, seen.leg, _told(change), _told(seen), task)
    newest = changes[-1].version if changes else 0
    if progress.last < newest and not follow.left:
        saw = f"version {progress.last} and no more" if progress.last else "nothing"
        yield _defect("lost", follow, len(follow.legs) - 1, _told(changes[-1]), saw, task)
    if not changes:
        yield _defect("untrue", follow, len(follow.legs) - 1, "a task that is in the log", "none", task)


def _judge_all(follow: Follow, log: Log) -> Iterator[Defect]:
    tasks: dict[str, _Progress] = {}
    leg_before, cursor, began = -1, 0, follow.joined
    for seen in follow.seen:
        leg = follow.legs[seen.leg]
        if seen.leg != leg_before and not leg.cursor:
            tasks, cursor, began = {}, 0, follow.joined  # it had no cursor yet, so it is told the present again
        leg_before = seen.leg
        yield from _untrue(follow, log, seen)
        wrong = tasks.setdefault(seen.task, _Progress()).take(seen)
        if wrong is not None:
            yield _defect(wrong[0], follow, seen.leg, wrong[1], _told(seen), seen.task)
        if not seen.cursor:
            continue
        if seen.cursor <= cursor:
            yield _defect("repeated", follow, seen.leg, f"a cursor above {cursor}", f"{seen.cursor}", seen.task)
        cursor = max(cursor, seen.cursor)
        began = began or seen.cursor
    if not began:
        if not follow.left:
            yield _defect("lost", follow, len(follow.legs) - 1, "all tasks", "no snapshot of them")
        return
    for change in log.since(began, cursor if follow.left else None):
        progress = tasks.get(change.task, _Progress())
        newest = not follow.left and change is log.of(change.task)[-1]
        missing = log.is_owed(change) and change.version not in progress.versions
        if missing or (newest and change.version > progress.last):
            # It shows on the connection that brought what comes after it, else on the last one.
            later = (s for s in follow.seen if s.task == change.task and s.version > change.version)
            after = next(later, None)
            number = len(follow.legs) - 1 if after is None else after.leg
            saw = f"version {progress.last}" if progress.last else "nothing of it"
            yield _defect("lost", follow, number, _told(change), saw if after is None else _told(after), change.task)


def _untrue(follow: Follow, log: Log, seen: Seen) -> Iterator[Defect]:
    change = log.find(seen.task, seen.version)
    if change is None:
        yield _defect("untrue", follow, seen.leg, "what is in the log", _told(seen), seen.task)
    elif (change.status_version, change.status, change.attempt) != (seen.status_version, seen.status, seen.attempt):
        yield _defect("untrue", follow, seen.leg, _told(change), _told(seen), seen.task)


def _is_terminal(change: Change | Seen) -> bool:
    return change.status in ("completed", "failed")


def _told(change: Change | Seen) -> str:
    return f"version {change.version} ({change.status}, attempt {change.attempt})"


def _defect(kind: Kind, follow: Follow, number: int, expected: str, saw: str, task: str = "") -> Defect:
    leg = follow.legs[number] if follow.legs else Leg("poll", 0, 0, 0.0)
    return Defect(kind, task or follow.task or "of all", expected, saw, follow.number, leg.transport, leg.cursor)
