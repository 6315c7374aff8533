"""Steps of the clock, told by two clocks that are not the machine's."""

import pytest

from server.clock import Clock

pytestmark = pytest.mark.pure


class Hands:
    """A wall clock and a steady one."""

    def __init__(self) -> None:
        self.wall = 1_800_000_000.0
        self.steady = 5.0

    def go(self, seconds: float, step: float = 0.0) -> None:
        self.wall += seconds + step
        self.steady += seconds


def test_a_step_is_told_once_and_by_how_much() -> None:
    hands = Hands()
    clock = Clock(lambda: hands.wall, lambda: hands.steady)
    for step in (3_600.0, -3_600.0, 30.0):
        hands.go(0.1)
        assert clock.step() == 0.0
        hands.go(0.1, step)
        assert clock.step() == pytest.approx(step)
        assert clock.step() == 0.0


def test_a_clock_that_is_slewed_and_a_process_that_was_held_up_are_no_steps() -> None:
    hands = Hands()
    clock = Clock(lambda: hands.wall, lambda: hands.steady)
    for _ in range(10_000):  # 500 ppm, the most that a time server's client does
        hands.go(0.1, 0.1 * 500e-6)
        assert clock.step() == 0.0
    hands.go(7_200)
    assert clock.step() == 0.0
