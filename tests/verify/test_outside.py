"""Judging without the log: made-up views, with each defect that shows from outside, and without any."""

import pytest

from server.clients.judge import Defect, judge, judge_log
from server.clients.times import Times
from server.clients.views import Follow, Leg, Log, Seen, Transport
from server.verify import outside
from server.verify.report import Report, text

pytestmark = pytest.mark.pure

BEGUN = Seen("one", 2, 2, "processing", 1, 0, 2.0)
HALF = Seen("one", 4, 2, "processing", 1, 0, 4.0)
DONE = Seen("one", 5, 5, "completed", 1, 0, 5.0)


def view(*seen: Seen, transport: Transport = "sse", number: int = 1, at: float = 0.0, **leg: object) -> Follow:
    told = {"recovered": False, "begun_seconds": 0.1, "lasted_seconds": 5.0, **leg}
    return Follow(number, "one", [Leg(transport, 0, 0, at, **told)], list(seen))  # type: ignore[arg-type]


def kinds(follow: Follow, log: Log) -> list[str]:
    return [defect.kind for defect in judge(follow, log) + outside.judge_connections(follow)]


def test_nothing_is_wrong_with_what_is_as_promised() -> None:
    polled = view(BEGUN, DONE, transport="poll", recovered=None, begun_seconds=None)
    follows = [view(BEGUN, HALF, DONE), view(DONE), polled]
    log = outside.log_of(follows, ["one"])
    assert [kinds(follow, log) for follow in follows] == [[], [], []]
    assert judge_log(log) == outside.judge_transports(follows) == []


def test_what_nobody_saw_shows_in_what_came_after_it() -> None:
    """Version 2 is known by the status version of 4 alone."""
    pending = Seen("one", 1, 1, "pending", 1, 0, 1.0)
    follow = view(pending, HALF, DONE)
    log = outside.log_of([follow], ["one"])
    assert kinds(follow, log) == ["lost"]
    assert [change.version for change in log.of("one")] == [1, 2, 4, 5]


def test_a_task_that_only_was_accepted_is_open() -> None:
    assert [defect.kind for defect in judge_log(outside.log_of([], ["one"]))] == ["open"]


def test_views_of_one_version_that_differ() -> None:
    failed = Seen("one", 5, 5, "failed", 1, 0, 6.0)
    follows = [view(BEGUN, DONE), view(BEGUN, failed, number=2)]
    assert "untrue" in kinds(follows[1], outside.log_of(follows, ["one"]))


def test_of_all_tasks_those_of_others_are_no_concern_and_ours_are_owed_from_the_beginning() -> None:
    def seen(task: str, version: int, status: str, seq: int) -> Seen:
        return Seen(task, version, version, status, 1, 0, float(seq), seq)

    foreign = seen("theirs", 7, "completed", 10)
    ours = [seen("one", 1, "pending", 11), seen("one", 2, "completed", 12)]
    legs = [Leg("sse", 0, 0, 0.0, recovered=False)]
    whole, holed = Follow(1, None, legs, [foreign, *ours]), Follow(2, None, legs, [foreign, ours[1]])
    log = outside.log_of([whole, holed], ["one"])
    assert log.tasks == ["one"]
    assert judge(outside.of_tasks(whole, ["one"]), log) == []
    assert [defect.kind for defect in judge(outside.of_tasks(holed, ["one"]), log)] == ["lost"]


@pytest.mark.parametrize(
    ("leg", "kind", "words"),
    [
        ({"begun_seconds": None}, "late", "none in 5.0 s: something on the way buffers"),
        ({"begun_seconds": 1.4}, "late", "after 1.4 s"),
        ({"lasted_seconds": 19.0}, "late", "a heartbeat"),
        ({"unended": True}, "unended", "still open"),
        ({"recovered": None}, "untrue", "sync"),
        ({"recovered": True}, "untrue", "snapshot"),
    ],
)
def test_what_is_wrong_with_a_connection(leg: dict[str, object], kind: str, words: str) -> None:
    (defect,) = outside.judge_connections(view(DONE, **leg))  # type: ignore[arg-type]
    assert defect.kind == kind
    assert words in str(defect)


@pytest.mark.parametrize(
    "leg",
    [
        {"lasted_seconds": 19.0, "heartbeats": 1},
        {"lasted_seconds": 0.1, "begun_seconds": None},  # 204, or broken off at once
        {"transport": "poll", "lasted_seconds": 19.0, "begun_seconds": None, "recovered": None},
    ],
)
def test_what_is_right_with_a_connection(leg: dict[str, object]) -> None:
    assert outside.judge_connections(view(DONE, **leg)) == []  # type: ignore[arg-type]


def test_who_was_there_and_saw_the_end_late() -> None:
    late = Seen("one", 5, 5, "completed", 1, 0, 9.0)
    follows = [
        view(DONE),
        view(late, number=2, transport="websocket"),
        view(late, number=3, transport="poll"),  # as late as it asks
        view(late, number=4, at=8.0),  # was away
    ]
    found = outside.lateness(follows, outside.ends(follows, ["one"]))
    assert [(follow.number, seconds) for follow, _, seconds in found] == [(1, 0.0), (2, 4.0), (3, 4.0)]
    assert [(defect.kind, defect.follow) for defect in outside.judge_lateness(found)] == [("late", 2)]


def test_a_transport_over_which_nothing_came() -> None:
    (defect,) = outside.judge_transports([view(DONE), view(transport="websocket")])
    assert (defect.kind, defect.transport) == ("refused", "websocket")


def test_the_report_spells_out_one_of_each_kind() -> None:
    defects = [Defect("late", "one", "the first bytes at once", "none", number, "sse") for number in (1, 2, 3)]
    defects.append(Defect("open", "two", "a terminal state", "version 1"))
    times = Times(1, 2, 3, 4)
    report = Report(
        "https://x", "1.2", 7, 3.0, {"completed": 1, "open": 1}, {"204": 2}, times, {"sse": times}, defects, ["so"]
    )
    told = text(report)
    for words in ("https://x: Taskbeam 1.2, seed 7", "1 completed, 1 open", "4 defects: 3 late, 1 open", "note: so"):
        assert words in told
    assert told.count("the first bytes at once") == 1
    assert "(and 2 like it)" in told
    assert "no defect" not in told
