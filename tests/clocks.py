"""Two clocks that go as a test says."""

from server.clock import Clock


class Hands:
    """A wall clock and a steady one."""

    def __init__(self) -> None:
        self.wall = 1_800_000_000.0
        self.steady = 5.0

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.steady)

    def go(self, seconds: float, step: float = 0.0) -> None:
        self.wall += seconds + step
        self.steady += seconds
