"""What becomes of a slot as time goes on: the processes are played, the board is real, and time comes from the test."""

import errno
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from server.fleet.board import PLACES_A_SLOT, Board
from server.fleet.slot import HUNG_SECONDS, READY_SECONDS_MAX, STOP_SECONDS_MAX, Slot
from tests.fleet.conftest import Processes

NUMBER = 1
PLACE = NUMBER * PLACES_A_SLOT


class Played:
    """A process: `returncode` is how it ended, `told` the signals it got."""

    def __init__(self) -> None:
        self.pid = 1
        self.returncode: int | None = None
        self.told: list[int] = []

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, signum: int) -> None:
        self.told.append(signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        self.returncode = -signal.SIGKILL

    def wait(self) -> int | None:
        return self.returncode


class World:
    """Slot 1, whose first process is ready."""

    def __init__(self) -> None:
        self.processes = Processes(Board.make(NUMBER + 1))
        self.begun: list[Any] = []
        self.slot = Slot(NUMBER, self.processes.board, self._begin, itertools.count(1).__next__)
        self.slot.start()
        self.processes.at(PLACE).ready()

    def _begin(self, _: int) -> "subprocess.Popen[bytes]":
        self.begun.append(Played())
        process: subprocess.Popen[bytes] = self.begun[-1]
        return process


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.processes.close()


def test_a_successor_that_does_not_get_ready_is_killed_and_nothing_else_changes(world: World) -> None:
    slot = world.slot
    slot.succeed(100.0)
    assert slot.look_at_successor(100.0 + READY_SECONDS_MAX) is None
    assert slot.look_at_successor(100.1 + READY_SECONDS_MAX) == "failed"
    old, new = world.begun
    assert (old.told, new.told) == ([], [signal.SIGKILL])
    assert (slot.ready, slot.generation) == (True, 1)
    assert slot.processes == [old]


def test_a_successor_that_cannot_be_started_changes_nothing(world: World) -> None:
    slot = world.slot

    def begin(_: int) -> "subprocess.Popen[bytes]":
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    slot._begin = begin
    slot.succeed(100.0)
    with structlog.testing.capture_logs() as logs:
        assert slot.look_at_successor(100.1) == "failed"
    assert f"could not be started ([Errno {errno.EAGAIN}] {os.strerror(errno.EAGAIN)})" in logs[0]["reason"]
    assert (slot.ready, slot.generation, slot.processes) == (True, 1, world.begun)
    assert world.begun[0].told == []
    slot._begin = world._begin  # once there is room again
    slot.succeed(101.0)
    world.processes.at(PLACE + 1).ready()
    assert slot.look_at_successor(101.1) is None
    assert world.begun[0].told == [signal.SIGTERM]


def test_the_one_before_is_told_to_end_and_killed_if_it_does_not(world: World) -> None:
    slot, processes = world.slot, world.processes
    slot.succeed(0.0)
    old, new = world.begun
    assert slot.look_at_successor(0.1) is None
    assert old.told == [], "the new one is not ready"
    processes.at(PLACE + 1).ready()
    assert slot.look_at_successor(0.2) is None, "the old one is there"
    assert (old.told, slot.generation) == ([signal.SIGTERM], 2)
    assert slot.processes == [new, old]
    slot.look(time.monotonic() + STOP_SECONDS_MAX - 0.1)
    assert slot.look_at_successor(0.3) is None
    slot.look(time.monotonic() + STOP_SECONDS_MAX + 0.1)
    assert old.told == [signal.SIGTERM, signal.SIGKILL]
    slot.look(time.monotonic() + STOP_SECONDS_MAX + 0.2)
    assert slot.look_at_successor(0.4) == "replaced"
    assert not processes.board.is_ready(PLACE)

    slot.succeed(1.0)  # and back again
    processes.at(PLACE).ready()
    assert slot.look_at_successor(1.1) is None
    assert (new.told, slot.generation) == ([signal.SIGTERM], 3)


def test_one_that_ended_is_started_in_its_place_and_is_not_ready_before_it_says_so(world: World) -> None:
    slot = world.slot
    world.begun[0].returncode = -signal.SIGSEGV
    now = time.monotonic()
    slot.look(now)
    assert (slot.ready, slot.processes, len(world.begun)) == (False, [], 1)
    slot.look(now + 0.3)
    assert (slot.ready, slot.processes, slot.generation) == (False, world.begun[1:], 2)


def test_one_whose_event_loop_does_not_come_round_is_killed(world: World) -> None:
    place, now = world.processes.at(PLACE), 0.0
    (process,) = world.begun

    def look(seconds: float) -> None:
        nonlocal now
        until = now + seconds
        while now < until:
            now += 1
            world.slot.look(now)

    for _ in range(3):
        place.tell(0)
        look(HUNG_SECONDS - 5)
    assert process.told == []
    now += 3_600  # the machine slept, and nobody could look or tell
    look(1)
    assert process.told == []
    look(HUNG_SECONDS + 2)
    assert process.told == [signal.SIGKILL]
