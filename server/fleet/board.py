"""What the web processes behind one port know of each other: a page of memory that they share, and an inbox each.

The supervisor makes it and hands it on by file descriptors, so there is nothing in the file system to protect or to
leave behind. A slot has two places, so that a process and its successor may live side by side. Each word of a place is
written by one process: by the supervisor while none is in the place, then by the one in it. A word is written at once,
so no lock is needed; what is read may be a moment old.
"""

import mmap
import os
import socket
import tempfile
import time
from dataclasses import dataclass

PLACES_A_SLOT = 2
WORDS_A_PLACE = 6
WORD_BYTES = 8
STATE, OPEN, BEAT, GENERATION, INBOX, OUTBOX = range(WORDS_A_PLACE)
EMPTY, STARTING, READY, LEAVING = range(4)
# Who has not said that it lives for this long does not take connections: nobody waits for it.
FRESH_SECONDS = 2.0


class Board:
    """Places by their number. `generation` counts the processes begun: the newer of two has the higher one."""

    def __init__(self, fd: int, places: int) -> None:
        self.fd = fd
        self.places = places
        self._words = memoryview(mmap.mmap(fd, places * WORDS_A_PLACE * WORD_BYTES)).cast("Q")

    @classmethod
    def make(cls, slots: int) -> "Board":
        """The supervisor's: with two places a slot, and their inboxes."""
        with tempfile.TemporaryFile() as file:
            places = slots * PLACES_A_SLOT
            file.truncate(places * WORDS_A_PLACE * WORD_BYTES)
            board = cls(os.dup(file.fileno()), places)
        for place in range(places):
            inbox, outbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            for end in (inbox, outbox):
                end.setblocking(False)
            board._write(place, INBOX, inbox.detach())
            board._write(place, OUTBOX, outbox.detach())
        return board

    @classmethod
    def find(cls, fd: int) -> "Board":
        """The one that was handed on as `fd`. Raises OSError where there is none."""
        return cls(fd, os.fstat(fd).st_size // (WORDS_A_PLACE * WORD_BYTES))

    def handed_on(self, place: int) -> tuple[int, ...]:
        """The file descriptors that the process in this place needs."""
        outboxes = (self._read(other, OUTBOX) for other in range(self.places))
        return (self.fd, self._read(place, INBOX), *outboxes)

    def begin(self, place: int, generation: int) -> None:
        """A process is started in it."""
        self._write(place, STATE, STARTING)
        self._write(place, OPEN, 0)
        self._write(place, BEAT, 0)
        self._write(place, GENERATION, generation)

    def clear(self, place: int) -> None:
        """Its process has ended."""
        self._write(place, STATE, EMPTY)

    def is_ready(self, place: int) -> bool:
        return self._read(place, STATE) == READY

    def beat(self, place: int) -> int:
        """When its process last said that it lives, in ns of the monotonic clock."""
        return self._read(place, BEAT)

    def generation(self, place: int) -> int:
        return self._read(place, GENERATION)

    def _read(self, place: int, word: int) -> int:
        return self._words[place * WORDS_A_PLACE + word]

    def _write(self, place: int, word: int, value: int) -> None:
        self._words[place * WORDS_A_PLACE + word] = value


@dataclass(frozen=True)
class Sibling:
    """Another slot, and whom to ask there: None while no process is ready in it."""

    slot: int
    outbox: socket.socket | None


class Place:
    """Of the process in it: what it tells its siblings, and what it reads of theirs."""

    def __init__(self, board: Board, number: int) -> None:
        self._board = board
        self._number = number
        self.slot = number // PLACES_A_SLOT
        self.inbox = socket.socket(fileno=board._read(number, INBOX))
        self._outboxes = [socket.socket(fileno=board._read(place, OUTBOX)) for place in range(board.places)]

    @classmethod
    def parse(cls, text: str) -> "Place":
        """What `format` gave. Raises ValueError and OSError."""
        fd, _, number = text.partition(":")
        return cls(Board.find(int(fd)), int(number))

    @staticmethod
    def format(board: Board, number: int) -> str:
        """How a process is told of its place: `fd of the board:number`."""
        return f"{board.fd}:{number}"

    def ready(self) -> None:
        """From now on it takes connections and answers its siblings."""
        self._board._write(self._number, STATE, READY)

    def leave(self) -> None:
        """It takes no more connections."""
        self._board._write(self._number, STATE, LEAVING)

    def tell(self, connections: int) -> None:
        """That it lives, and how many connections it has."""
        self._board._write(self._number, OPEN, connections)
        self._board._write(self._number, BEAT, time.monotonic_ns())

    def least_open(self) -> int | None:
        """The connections of the sibling that has the fewest; None where nobody else takes any."""
        board, since = self._board, time.monotonic_ns() - int(FRESH_SECONDS * 1e9)
        return min(
            (
                board._read(place, OPEN)
                for place in range(board.places)
                if place != self._number and board.is_ready(place) and board.beat(place) >= since
            ),
            default=None,
        )

    def siblings(self) -> list[Sibling]:
        """The other slots. Of two processes in one the newer answers, so that its counters never go back again."""
        board = self._board
        found = []
        for slot in range(board.places // PLACES_A_SLOT):
            if slot == self.slot:
                continue
            ready = [p for p in range(slot * PLACES_A_SLOT, (slot + 1) * PLACES_A_SLOT) if board.is_ready(p)]
            newest = max(ready, key=lambda place: board._read(place, GENERATION), default=None)
            found.append(Sibling(slot, None if newest is None else self._outboxes[newest]))
        return found
