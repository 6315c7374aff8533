"""Holds the state machine to its rules: a table to read, and the rules themselves against any order of changes."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.tasks.state import (
    OPEN,
    STATUSES,
    TERMINAL,
    Change,
    Complete,
    Fail,
    Report,
    Retry,
    State,
    Status,
    advance,
)

pytestmark = pytest.mark.pure

PENDING = State()
RUNNING = State(status="processing", progress=40, message="drawing", step=2, steps=5, version=4, status_version=2)
SECOND = State(status="processing", delivery=2, progress=10, version=6, status_version=2)
DONE = State(status="completed", result="/results/a.png", progress=100, version=5, status_version=5)
FAILED = State(status="failed", error="no", error_code="timeout", progress=40, version=5, status_version=5)
AGAIN = State(attempt=2, version=6, status_version=6)

# (what happens, before, the change, the refusal or the fields that differ afterwards)
TABLE: tuple[tuple[str, State, Change, str | dict[str, object]], ...] = (
    ("a claim begins it", PENDING, Report(attempt=1), {"status": "processing", "version": 2, "status_version": 2}),
    (
        "so does progress",
        PENDING,
        Report(attempt=1, progress=0),
        {"status": "processing", "progress": 0, "version": 2, "status_version": 2},
    ),
    ("progress is no change of status", RUNNING, Report(attempt=1, progress=41), {"progress": 41, "version": 5}),
    ("what a report leaves out stays", RUNNING, Report(attempt=1, step=3), {"step": 3, "version": 5}),
    ("the same percent may bring news", RUNNING, Report(attempt=1, progress=40, step=3), {"step": 3, "version": 5}),
    ("nothing new", RUNNING, Report(attempt=1, progress=40, message="drawing"), "duplicate"),
    ("a second claim", RUNNING, Report(attempt=1), "duplicate"),
    ("progress goes back", RUNNING, Report(attempt=1, progress=39, message="late"), "stale"),
    (
        "a new delivery starts over",
        RUNNING,
        Report(attempt=1, delivery=2, progress=5),
        {"delivery": 2, "progress": 5, "message": None, "step": None, "steps": None, "version": 5},
    ),
    ("a report of an older delivery", SECOND, Report(attempt=1, delivery=1, progress=90), "stale"),
    ("a report of the attempt before", AGAIN, Report(attempt=1, progress=90), "stale"),
    ("a report of an attempt to come", PENDING, Report(attempt=2, progress=1), "stale"),
    ("progress after the end", DONE, Report(attempt=1, progress=100), "stale"),
    ("progress after a failure", FAILED, Report(attempt=1, delivery=2), "stale"),
    (
        "a silent generator is done at once",
        PENDING,
        Complete(attempt=1, result="/results/a.png"),
        {"status": "completed", "result": "/results/a.png", "progress": 100, "version": 2, "status_version": 2},
    ),
    (
        "done",
        RUNNING,
        Complete(attempt=1, result="u"),
        {"status": "completed", "result": "u", "progress": 100, "version": 5, "status_version": 5},
    ),
    ("done, said twice", DONE, Complete(attempt=1, result="/results/a.png"), "duplicate"),
    ("done, another result", DONE, Complete(attempt=1, result="/results/b.png"), "stale"),
    ("done after it failed", FAILED, Complete(attempt=1, result="u"), "stale"),
    ("done, of the attempt before", AGAIN, Complete(attempt=1, result="u"), "stale"),
    (
        "failed",
        RUNNING,
        Fail(attempt=1, error="no", error_code="timeout"),
        {"status": "failed", "error": "no", "error_code": "timeout", "version": 5, "status_version": 5},
    ),
    (
        "cancelled",
        PENDING,
        Fail(attempt=1, error="Cancelled", error_code="cancelled", cancelled=True),
        {
            "status": "failed",
            "error": "Cancelled",
            "error_code": "cancelled",
            "cancelled": True,
            "version": 2,
            "status_version": 2,
        },
    ),
    ("failed, said twice", FAILED, Fail(attempt=1, error="no", error_code="timeout"), "duplicate"),
    ("failed, for another reason", FAILED, Fail(attempt=1, error="no", error_code="unreachable"), "stale"),
    ("failed after it was done", DONE, Fail(attempt=1, error="no", error_code="timeout"), "stale"),
    ("failed, of the attempt before", AGAIN, Fail(attempt=1, error="no", error_code="timeout"), "stale"),
    ("retry of what runs", RUNNING, Retry(attempt=1), "stale"),
    ("retry of what is done", DONE, Retry(attempt=1), "stale"),
    ("retry, asked for twice", AGAIN, Retry(attempt=1), "stale"),
)


@pytest.mark.parametrize(("before", "change", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_table(before: State, change: Change, expected: str | dict[str, object]) -> None:
    wanted = expected if isinstance(expected, str) else msgspec.structs.replace(before, **expected)
    assert advance(before, change) == wanted


def test_a_retry_clears_everything_but_the_count() -> None:
    cancelled = State(
        status="failed",
        attempt=3,
        delivery=4,
        progress=50,
        message="m",
        preview="p",
        step=1,
        steps=2,
        error="Cancelled",
        error_code="cancelled",
        cancelled=True,
        version=9,
        status_version=9,
    )
    assert advance(cancelled, Retry(attempt=3)) == State(attempt=4, version=10, status_version=10)


PERCENT = st.none() | st.sampled_from([0, 1, 40, 99, 100])
FEW = st.none() | st.integers(0, 2)
ATTEMPT = st.integers(1, 3)
CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.builds(
        Report,
        attempt=ATTEMPT,
        delivery=st.integers(1, 3),
        progress=PERCENT,
        message=st.sampled_from([None, "a", "b"]),
        preview=st.sampled_from([None, "x"]),
        step=FEW,
        steps=FEW,
    ),
    st.builds(Complete, attempt=ATTEMPT, result=st.sampled_from(["r1", "r2"])),
    st.builds(
        Fail,
        attempt=ATTEMPT,
        error=st.sampled_from(["e1", "e2"]),
        error_code=st.sampled_from(["c1", "c2"]),
        cancelled=st.booleans(),
    ),
    st.builds(Retry, attempt=ATTEMPT),
)
# The last word of each pair: aim the change at the attempt that runs, or leave it where it fell.
HISTORIES = st.lists(st.tuples(CHANGES, st.booleans()), max_size=12)
REACHABLE: dict[Status, frozenset[Status]] = {
    "pending": frozenset({"processing", "completed", "failed"}),
    "processing": frozenset({"processing", "completed", "failed"}),
    "completed": frozenset(),
    "failed": frozenset({"pending"}),
}


def _hold_to_the_rules(before: State, change: Change, after: State) -> None:
    assert change.attempt == before.attempt, "only what is of this attempt changes anything"
    assert after.version == before.version + 1
    moved = (after.status, after.attempt) != (before.status, before.attempt)
    assert after.status_version == (after.version if moved else before.status_version)
    assert after.status in REACHABLE[before.status]
    assert after.attempt == before.attempt + isinstance(change, Retry)
    assert (before.status == "failed") == isinstance(change, Retry), "a retry is the only way out of a failure"
    count = {"version": before.version, "status_version": before.status_version}
    assert msgspec.structs.replace(after, **count) != before, "a version that says nothing new"
    if isinstance(change, Retry):
        assert after == State(attempt=after.attempt, version=after.version, status_version=after.version)
    else:
        assert after.delivery >= before.delivery
        if after.delivery == before.delivery:
            assert (after.progress or 0) >= (before.progress or 0)
    assert (after.result is not None) == (after.status == "completed")
    assert (after.error is not None) == (after.error_code is not None) == (after.status == "failed")
    assert not after.cancelled or after.status == "failed"


@given(HISTORIES)
@settings(max_examples=80, deadline=None, derandomize=True, database=None)
def test_rules_hold_for_any_order_of_changes(history: list[tuple[Change, bool]]) -> None:
    state, versions = State(), [1]
    for change, aimed in history:
        if aimed:
            change = msgspec.structs.replace(change, attempt=state.attempt)  # noqa: PLW2901
        after = advance(state, change)
        if isinstance(after, str):
            assert after in ("duplicate", "stale")
            continue
        _hold_to_the_rules(state, change, after)
        assert isinstance(advance(after, change), str), "the same change applies once"
        state = after
        versions.append(state.version)
    assert versions == list(range(1, len(versions) + 1))


@given(HISTORIES, st.sampled_from([DONE, FAILED]))
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
def test_an_end_is_final(history: list[tuple[Change, bool]], ended: State) -> None:
    for change, _ in history:
        if isinstance(change, Retry) and ended is FAILED:
            continue
        assert isinstance(advance(ended, change), str)


def test_every_status_is_open_or_an_end() -> None:
    assert set(STATUSES) == OPEN | TERMINAL
    assert not OPEN & TERMINAL
