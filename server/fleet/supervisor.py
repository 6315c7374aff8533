"""`taskbeam serve`: several web processes behind one port. The supervisor has no event loop and no application.

It owns the listening socket for as long as it lives and hands it on, so that no connection in the backlog is lost when
a process ends. All of them take from this one socket, and board.py keeps them even: a socket each (SO_REUSEPORT) would
leave what the kernel gave to a process that is dead or stuck waiting there, could not be had where the socket is handed
on to us, and gives everyone as many new connections when what matters is how many streams they have: after a rolling
restart the last process would have the fewest for hours.

SIGTERM and SIGINT end all of it, at any time. SIGHUP replaces the processes, one after the other: a new one is started,
and when it says that it is ready the one before is told to end; once that is gone the next slot's turn comes. Another
SIGHUP meanwhile begins anew with all that were started before it. Where a new process does not get ready, the rolling
restart is given up and whoever is there stays.
"""

import itertools
import os
import select
import signal
import socket
import subprocess
import time
from types import FrameType

import structlog

from server.embedded.children import end, ours, spawn
from server.embedded.terminal import occupy_standard_files
from server.fleet.board import Board, Place
from server.fleet.cores import cores
from server.fleet.listener import inherit_listener, open_listener
from server.fleet.notice import notify
from server.fleet.slot import STOP_SECONDS_MAX, Slot
from server.log import configure
from server.settings import Settings

log = structlog.get_logger()

# When nothing happens; a signal, and a process that ends, are seen at once.
LOOK_SECONDS = 1.0
BUSY_LOOK_SECONDS = 0.05
# What no second try mends: settings that are refused, a database that is not there. As `taskbeam web` ends.
HOPELESS = (1, 2)
ENDING = (signal.SIGTERM, signal.SIGINT)


def run_serve(settings: Settings, processes: int | None = None, fd: int | None = None) -> int:
    """Run until a signal comes; the exit code. `processes` and the listening socket `fd` are given on the command line.

    Raises InvalidSettings.
    """
    occupy_standard_files()
    configure(settings, "serve")
    listener = open_listener(settings.host, settings.port) if fd is None else inherit_listener(fd)
    supervisor = Supervisor(listener, processes or settings.web_processes or cores(), Signals())
    try:
        return supervisor.run()
    finally:
        for signum in (*ENDING, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        supervisor.stop()


class Signals:
    """What was asked for by signals. `wait` returns early when one comes, or a child ends."""

    def __init__(self) -> None:
        self.end = False
        self._rolls = 0
        self._woken, waker = socket.socketpair()
        self._waker = waker
        for end_of_pair in (self._woken, waker):
            end_of_pair.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for signum in (*ENDING, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(signum, self._come)

    def _come(self, signum: int, _: FrameType | None) -> None:
        if signum in ENDING:
            self.end = True
        elif signum == signal.SIGHUP:
            self._rolls += 1

    def take_roll(self) -> bool:
        """Whether a rolling restart was asked for since the last call."""
        asked, self._rolls = self._rolls > 0, 0
        return asked

    def wait(self, seconds: float) -> None:
        if select.select([self._woken], [], [], seconds)[0]:
            self._woken.recv(4096)


class Supervisor:
    """`run()`, then `stop()`."""

    def __init__(self, listener: socket.socket, processes: int, signals: Signals) -> None:
        self._listener = listener
        self._signals = signals
        self._generations = itertools.count(1)
        self._board = Board.make(processes)
        self._slots = [
            Slot(number, self._board, self._begin, self._generations.__next__) for number in range(processes)
        ]
        self._started = False
        self._rolling: Slot | None = None
        # Who was begun before is to be replaced.
        self._fresh_from = 0

    def _begin(self, place: int) -> "subprocess.Popen[bytes]":
        fd = self._listener.fileno()
        argv = ours("web", "--fd", str(fd), "--place", Place.format(self._board, place))
        return spawn(argv, env=os.environ, pass_fds=(fd, *self._board.handed_on(place)))

    def run(self) -> int:
        """Until a signal ends it, or the first process cannot be started for good; the exit code."""
        first = self._slots[0]
        first.start()
        while not self._signals.end:
            self._signals.wait(BUSY_LOOK_SECONDS if self._busy else LOOK_SECONDS)
            if not self._started and first.exit_code in HOPELESS:
                return first.exit_code or 0
            now = time.monotonic()
            for slot in self._slots if self._started else (first,):
                slot.look(now)
            if self._started:
                self._roll(now)
            elif first.ready:
                self._start_the_others()
        return 0

    @property
    def _busy(self) -> bool:
        return self._fresh_from > 0 or not all(slot.ready for slot in self._slots)

    def _start_the_others(self) -> None:
        """After the first is ready: what is wrong with the settings or the database is said once."""
        self._started = True
        for slot in self._slots[1:]:
            slot.start()
        notify("READY=1")
        host, port = self._listener.getsockname()[:2]
        log.info("serve_started", address=host, port=port, processes=len(self._slots))

    def _roll(self, now: float) -> None:
        if self._signals.take_roll():
            log.info("roll_begun")
            self._fresh_from = next(self._generations)
        if self._rolling is None:
            self._rolling = next((slot for slot in self._slots if slot.generation < self._fresh_from), None)
            if self._rolling is not None:
                self._rolling.succeed(now)
            elif self._fresh_from:
                self._fresh_from = 0
                log.info("roll_ended")
            return
        outcome = self._rolling.look_at_successor(now)
        if outcome is not None:
            self._rolling = None
        if outcome == "failed":
            self._fresh_from = 0

    def stop(self) -> None:
        """End all, within STOP_SECONDS_MAX. Idempotent."""
        end([process for slot in self._slots for process in slot.processes], signal.SIGTERM, STOP_SECONDS_MAX)
        self._listener.close()
        log.info("serve_stopped")
