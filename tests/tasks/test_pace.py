"""Holds the advice on polling to its bounds, and to the curve that is promised: closer towards the end, then less."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.tasks.pace import POLL_MS_MAX, POLL_MS_MIN, POLL_MS_UNKNOWN, Pace

pytestmark = pytest.mark.pure


def pace(typical_seconds: float | None) -> Pace:
    made = Pace()
    made.typical_seconds = typical_seconds
    return made


@given(st.none() | st.floats(0, 1e9), st.floats(0, 1e9))
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_always_within_bounds(typical_seconds: float | None, age_seconds: float) -> None:
    wait = pace(typical_seconds).poll_after_ms(age_seconds)
    assert isinstance(wait, int)
    assert POLL_MS_MIN <= wait <= POLL_MS_MAX


def test_before_anything_is_known_a_second_and_slowly_more() -> None:
    unknown = Pace()
    assert unknown.typical_seconds is None
    waits = [unknown.poll_after_ms(age) for age in (0, 10, 60, 600)]
    assert waits[0] == POLL_MS_UNKNOWN
    assert waits == sorted(set(waits))
    assert waits[-1] == POLL_MS_MAX


def test_half_of_what_is_left() -> None:
    known = pace(10)
    assert [known.poll_after_ms(age) for age in (0, 5, 8, 9.5)] == [5_000, 2_500, 1_000, POLL_MS_MIN]


def test_overdue_is_asked_for_less_and_less() -> None:
    known = pace(10)
    waits = [known.poll_after_ms(age) for age in (10, 20, 40, 1000)]
    assert waits == sorted(set(waits))
    assert waits[0] == POLL_MS_MIN
    assert waits[-1] == POLL_MS_MAX
