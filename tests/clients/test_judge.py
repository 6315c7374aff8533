"""A checker that cannot fail is worth nothing: made-up views with each kind of defect, and without any."""

import pytest

from server.clients.judge import judge, judge_gaps, judge_log
from server.clients.views import Change, Follow, Leg, Log, Seen, Transport

pytestmark = pytest.mark.pure

# One task: created, begun, two reports, done. Another: failed, retried, done. Numbers of the owner as they committed.
ROWS = [
    ("one", 1, 1, "pending", 1),
    ("one", 2, 2, "processing", 1),
    ("two", 1, 1, "pending", 1),
    ("one", 3, 2, "processing", 1),
    ("two", 2, 2, "failed", 1),
    ("one", 4, 2, "processing", 1),
    ("two", 3, 3, "pending", 2),
    ("two", 4, 4, "completed", 2),
    ("one", 5, 5, "completed", 1),
]
LOG = Log(Change(*row, seq=seq, at=float(seq)) for seq, row in enumerate(ROWS, 1))


def seen(task: str, version: int, leg: int = 0, cursor: int = 0) -> Seen:
    change = LOG.find(task, version)
    assert change is not None
    return Seen(task, version, change.status_version, change.status, change.attempt, leg, change.at, cursor)


def one(*views: Seen, legs: list[Leg] | None = None, transport: Transport = "sse", task: str = "one") -> Follow:
    return Follow(7, task, legs or [Leg(transport, 0, 0, 0.0, recovered=False)], list(views))


def all_tasks(*numbers: int, left: bool = False) -> Follow:
    """A snapshot at number 2 (`one` at version 2), then these numbers."""
    views = [seen("one", 2, cursor=2)] + [seen(ROWS[n - 1][0], ROWS[n - 1][1], cursor=n) for n in numbers]
    return Follow(8, None, [Leg("websocket", 0, 0, 0.0, recovered=False)], views, left=left)


def kinds(follow: Follow, log: Log = LOG) -> list[str]:
    return [defect.kind for defect in judge(follow, log)]


GOOD = [
    one(seen("one", 1), seen("one", 2), seen("one", 3), seen("one", 4), seen("one", 5)),
    one(seen("one", 2), seen("one", 5)),  # mere progress may be skipped
    one(seen("one", 5)),  # joined after the end
    one(seen("one", 1), seen("one", 5), transport="poll"),  # a poll tells the newest state only
    one(
        seen("one", 1),
        seen("one", 2, leg=1),
        seen("one", 4, leg=1),
        seen("one", 5, leg=2),
        legs=[
            Leg("sse", 0, 0, 0.0, recovered=False),
            Leg("websocket", 1, 1, 1.0, recovered=True),
            Leg("longpoll", 0, 4, 2.0),
            Leg("sse", 0, 5, 3.0),
        ],
    ),
    one(seen("two", 1), seen("two", 3), seen("two", 4), task="two"),  # a failure that was retried is history
    one(seen("two", 1), seen("two", 2), seen("two", 3), seen("two", 4), task="two"),  # but may be seen when it happens
    all_tasks(3, 7, 8, 9),
    all_tasks(3, 4, 5, 6, 7, 8, 9),
    all_tasks(3, 4, left=True),  # it went before the rest happened
]


@pytest.mark.parametrize("follow", GOOD)
def test_what_is_as_promised(follow: Follow) -> None:
    assert kinds(follow) == []


@pytest.mark.parametrize(
    ("follow", "expected"),
    [
        (one(seen("one", 1), seen("one", 3), seen("one", 5)), ["lost"]),  # the change to processing
        (one(seen("one", 1), seen("one", 2), seen("one", 4)), ["lost"]),  # the end
        (one(), ["lost"]),
        (one(seen("two", 1), seen("two", 4), task="two"), ["lost"]),  # the new attempt
        (one(seen("two", 1), seen("two", 2), task="two"), ["lost"]),  # all of the retry
        (all_tasks(3, 8, 9), ["lost"]),
        (all_tasks(3, 7, 8), ["lost"]),
        (all_tasks(4, left=True), ["lost"]),  # number 3 lies before its cursor
    ],
)
def test_what_is_lost(follow: Follow, expected: list[str]) -> None:
    assert kinds(follow) == expected


def test_a_skip_counts_where_the_transport_promises_more() -> None:
    legs = [Leg("poll", 0, 0, 0.0), Leg("sse", 0, 1, 1.0, recovered=True)]
    assert kinds(one(seen("one", 1), seen("one", 5, leg=1), legs=legs)) == ["lost"]


def test_a_cursor_that_could_not_be_continued() -> None:
    legs = [Leg("sse", 0, 0, 0.0, recovered=False), Leg("sse", 0, 2, 1.0, recovered=False)]
    assert kinds(one(seen("one", 2), seen("one", 5, leg=1), legs=legs)) == ["lost"]


@pytest.mark.parametrize(
    "follow",
    [
        one(seen("one", 1), seen("one", 2), seen("one", 2), seen("one", 5)),
        one(
            seen("one", 2),
            seen("one", 2, leg=1),
            seen("one", 5, leg=1),
            legs=[Leg("sse", 0, 0, 0.0, recovered=False), Leg("longpoll", 0, 2, 1.0)],
        ),
        one(seen("one", 2), seen("one", 5), seen("one", 5)),  # the end, twice
        all_tasks(3, 7, 8, 8, 9),
    ],
)
def test_what_is_repeated(follow: Follow) -> None:
    assert set(kinds(follow)) == {"repeated"}


@pytest.mark.parametrize(
    "follow",
    [
        one(seen("one", 2), seen("one", 4), seen("one", 3), seen("one", 5)),
        one(seen("one", 2), seen("one", 5), seen("one", 4)),
    ],
)
def test_what_is_reordered(follow: Follow) -> None:
    assert kinds(follow) == ["reordered"]


def test_what_was_lost_among_all_shows_on_the_connection_that_went_past_it() -> None:
    follow = all_tasks(3, 8, 9)
    follow.legs.append(Leg("sse", 0, 9, 9.0, recovered=True))
    (defect,) = judge(follow, LOG)
    assert (defect.transport, defect.saw) == ("websocket", "version 4 (completed, attempt 2)")


def test_all_are_owed_what_came_after_they_joined_where_that_is_told() -> None:
    legs = [Leg("sse", 0, 0, 0.0, recovered=False)]
    follow = Follow(8, None, legs, [seen("one", 5, cursor=9)], left=True)
    assert kinds(follow) == []
    follow.joined = 7
    assert kinds(follow) == ["lost"]  # number 8
    assert kinds(Follow(8, None, legs, joined=9)) == []  # it joined at the end of the log
    assert kinds(Follow(8, None, legs, joined=8)) == ["lost"]


def test_a_cursor_of_all_tasks_that_goes_back() -> None:
    follow = all_tasks(3, 7, 8, 9)
    follow.seen[2], follow.seen[3] = follow.seen[3], follow.seen[2]
    assert set(kinds(follow)) == {"repeated", "reordered"}


def test_what_comes_after_the_end_of_an_attempt() -> None:
    beyond = Log([*LOG.changes, Change("one", 6, 5, "completed", 1, 10, 10.0)])
    follow = one(seen("one", 2), seen("one", 5), Seen("one", 6, 5, "completed", 1, 0, 10.0))
    assert kinds(follow, beyond) == ["repeated"]
    assert [defect.kind for defect in judge_log(beyond)] == ["untrue"]


@pytest.mark.parametrize(
    "view",
    [
        Seen("one", 6, 6, "completed", 1, 0, 9.0),
        Seen("one", 5, 5, "failed", 1, 0, 9.0),
        Seen("one", 5, 5, "completed", 2, 0, 9.0),
        Seen("one", 5, 2, "completed", 1, 0, 9.0),
    ],
)
def test_what_is_not_in_the_log(view: Seen) -> None:
    assert "untrue" in kinds(one(seen("one", 2), seen("one", 4), view))


def test_a_task_that_was_told_of_and_is_not_there() -> None:
    assert kinds(Follow(7, "three", [Leg("sse", 0, 0, 0.0)])) == ["untrue"]


def test_an_answer_that_no_client_should_get() -> None:
    follow = one(seen("one", 5))
    follow.problems.append((0, "HTTP 500"))
    (defect,) = judge(follow, LOG)
    assert defect.kind == "refused"
    assert "HTTP 500" in str(defect)


def test_one_that_never_saw_all_tasks() -> None:
    assert kinds(Follow(8, None, [Leg("sse", 0, 0, 0.0)])) == ["lost"]
    assert kinds(Follow(8, None, [Leg("sse", 0, 0, 0.0)], left=True)) == []


def test_a_snapshot_of_all_tasks_that_was_broken_off_begins_anew() -> None:
    legs = [Leg("sse", 0, 0, 0.0, recovered=False), Leg("sse", 1, 0, 1.0, recovered=False)]
    views = [seen("one", 2), seen("one", 2, leg=1), seen("two", 1, leg=1, cursor=3)]
    views += [seen("two", 3, leg=1, cursor=7), seen("two", 4, leg=1, cursor=8), seen("one", 5, leg=1, cursor=9)]
    assert kinds(Follow(8, None, legs, views)) == []


def test_the_log_itself() -> None:
    assert judge_log(LOG) == []
    still = Log(LOG.changes[:-1])
    assert [(defect.kind, defect.task) for defect in judge_log(still)] == [("open", "one")]
    holes = Log([*LOG.changes[:3], *LOG.changes[4:]])
    assert [(defect.kind, defect.task) for defect in judge_gaps(holes)] == [("untrue", "one")]


def test_a_defect_says_who_and_what() -> None:
    (defect,) = judge(one(seen("one", 1), seen("one", 3), seen("one", 5)), LOG)
    told = str(defect)
    for word in ("lost", "task one", "follower 7", "sse", "cursor 0", "version 2 (processing, attempt 1)", "version 3"):
        assert word in told
