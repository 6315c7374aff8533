"""One of the web processes, for ever: started again when it ends, and followed by a successor in a rolling restart.

It has no loop of its own: the supervisor looks at it. A slot has two places on the board; a successor is started in the
free one while the process before it goes on.
"""

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Literal, TypeAlias

import structlog

from server.embedded.part import Part
from server.fleet.board import PLACES_A_SLOT, Board

log = structlog.get_logger()

STOP_SECONDS_MAX = 4.8
READY_SECONDS_MAX = 30.0
# A process whose event loop has not come round for this long does nothing for its streams, and will not.
HUNG_SECONDS = 30.0

Process: TypeAlias = "subprocess.Popen[bytes]"
Outcome: TypeAlias = Literal["replaced", "failed"]


class Slot:
    """`begin(place)` starts a process; `generations` gives a higher number each time."""

    def __init__(
        self, number: int, board: Board, begin: Callable[[int], Process], generations: Callable[[], int]
    ) -> None:
        self.number = number
        self.generation = 0
        self._board = board
        self._begin = begin
        self._generations = generations
        self._place = number * PLACES_A_SLOT
        self._part = self._make(self._place)
        self._successor: Part | None = None
        self._successor_until = 0.0
        self._not_started: OSError | None = None
        self._leaving: Process | None = None
        self._leaving_until = 0.0
        self._beat = 0
        self._beat_at = 0.0
        self._seen = 0.0

    def _make(self, place: int) -> Part:
        def begin() -> Process:
            generation = self._generations()
            self._board.begin(place, generation)
            process = self._begin(place)
            if place == self._place:
                self.generation = generation
            return process

        return Part(f"web process {self.number}", begin)

    def start(self) -> None:
        """Raises OSError."""
        self._part.start()

    @property
    def ready(self) -> bool:
        return self._board.is_ready(self._place)

    @property
    def exit_code(self) -> int | None:
        """Of the process that was started last; None while it runs."""
        return None if self._part.process is None else self._part.process.poll()

    @property
    def processes(self) -> list[Process]:
        """All that run for this slot."""
        successor = None if self._successor is None else self._successor.process
        known = (self._part.process, successor, self._leaving)
        return [process for process in known if process is not None and process.poll() is None]

    def look(self, now: float) -> None:
        """Start it again if it has ended; end one that hangs, or that was told to end and does not.

        `now` is time.monotonic(), and this is called at least once a second.
        """
        if self._part.process is not None and self._part.process.poll() is not None:
            self._board.clear(self._place)
        if text := self._part.look(now):
            log.warning("process_ended", slot=self.number, reason=text)
        self._look_for_hang(now)
        if self._leaving is not None:
            if self._leaving.poll() is not None:
                self._leaving = None
                self._board.clear(self._place ^ 1)
            elif now > self._leaving_until:
                self._leaving.kill()

    def _look_for_hang(self, now: float) -> None:
        # By our own looks, not by the age of the beat: after the machine has slept all of them are old.
        beat = self._board.beat(self._place)
        if beat != self._beat or not self.ready or now - self._seen > HUNG_SECONDS / 2:
            self._beat, self._beat_at = beat, now
        elif now - self._beat_at > HUNG_SECONDS and self._part.process is not None:
            log.error("process_hung", slot=self.number, pid=self._part.process.pid)
            self._part.process.kill()
            self._beat_at = now
        self._seen = now

    def succeed(self, now: float) -> None:
        """Begin a successor; look_at_successor() says what becomes of it, also where none can be started."""
        self._successor = self._make(self._place ^ 1)
        self._successor_until = now + READY_SECONDS_MAX
        try:
            self._successor.start()
        except OSError as error:  # no memory or no process is left: all the more the old ones are to stay
            self._not_started = error

    def look_at_successor(self, now: float) -> Outcome | None:
        """`replaced`: it is ready, and the process before it has ended. `failed`: it is gone, and nothing has changed.

        None: not yet.
        """
        if self._successor is None:
            return None if self._leaving is not None else "replaced"
        process = self._successor.process
        if process is None or process.poll() is not None or now > self._successor_until:
            self._give_up(process)
            return "failed"
        if self._board.is_ready(self._place ^ 1):
            self._hand_over(self._successor)
        return None

    def _hand_over(self, successor: Part) -> None:
        old = self._part.process
        self._place ^= 1
        self._part, self._successor = successor, None
        self.generation = self._board.generation(self._place)
        if old is not None and old.poll() is None:
            self._leaving, self._leaving_until = old, time.monotonic() + STOP_SECONDS_MAX
            with contextlib.suppress(ProcessLookupError):
                old.send_signal(signal.SIGTERM)

    def _give_up(self, process: "Process | None") -> None:
        self._successor = None
        code = None if process is None else process.poll()
        how = f"was not ready in {READY_SECONDS_MAX:.0f} s" if code is None else f"ended ({code}) before it was ready"
        if process is None:
            how = f"could not be started ({self._not_started})"
        if process is not None and code is None:
            process.kill()
            process.wait()
        self._board.clear(self._place ^ 1)
        log.error("roll_given_up", slot=self.number, reason=f"the new process {how}; the old ones stay")
