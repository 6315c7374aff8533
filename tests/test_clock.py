"""Steps of the clock, told by two clocks that are not the machine's."""

import pytest

from server.clock import SETTLING_SECONDS
from tests.clocks import Hands

pytestmark = pytest.mark.pure


def test_a_step_is_told_once_and_by_how_much() -> None:
    hands = Hands()
    clock = hands.clock()
    for step in (3_600.0, -3_600.0, 30.0):
        hands.go(0.1)
        assert clock.step() == 0.0
        hands.go(0.1, step)
        assert clock.step() == pytest.approx(step)
        assert clock.step() == 0.0


def test_a_clock_that_is_slewed_and_a_process_that_was_held_up_are_no_steps() -> None:
    hands = Hands()
    clock = hands.clock()
    for _ in range(10_000):  # 500 ppm, the most that a time server's client does
        hands.go(0.1, 0.1 * 500e-6)
        assert clock.step() == 0.0
    hands.go(7_200)
    assert clock.step() == 0.0


def test_for_some_seconds_after_a_step_it_is_not_settled() -> None:
    hands = Hands()
    clock = hands.clock()
    assert clock.is_settled()
    for step in (3_600.0, -3_600.0):
        hands.go(1.0, step)
        assert not clock.is_settled()
        hands.go(SETTLING_SECONDS - 0.1)
        assert not clock.is_settled()
        hands.go(0.2)
        assert clock.is_settled()
