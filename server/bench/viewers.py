"""Many clients on one epoll: they count what they are sent, and cost little, since they share the machine with it.

An event is counted by the line of its id. What is to be known beyond the count (when it came, of which task it is) is
asked for by `seen`, and costs more.
"""

import contextlib
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence

from server.bench.frames import FrameChecker
from server.bench.machine import CannotMeasure

EVENT = b"\nid: "
READ_BYTES = 1 << 20
AT_ONCE = 100
READY_MAX = 1_024
CONNECT_SECONDS_MAX = 10.0
QUIET_SECONDS = 0.1
RESET = struct.pack("ii", 1, 0)  # a close() that leaves no port waiting

Seen = Callable[[int, bytes], None]


class Opening:
    """How a stream is opened: `request` first, `then` once it was switched to WebSocket; `begun` shows that it is."""

    __slots__ = ("begun", "request", "then")

    def __init__(self, request: bytes, begun: bytes, then: bytes = b"") -> None:
        self.request = request
        self.begun = begun
        self.then = then


class Viewers:
    """Streams by number, in the order in which they were opened. `delivered`: events; `reads`: of sockets; `ended`."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._poll = select.epoll()
        self._sockets: dict[int, tuple[socket.socket, int]] = {}  # by file descriptor, with its number
        self._tails: dict[int, bytes] = {}
        self._checkers: dict[int, FrameChecker] = {}
        self._buffer = bytearray(READ_BYTES)
        self._count = 0
        self._nth = 0
        self.delivered = 0
        self.reads = 0
        self.ended = 0
        self.seen: Seen | None = None

    def __len__(self) -> int:
        return len(self._sockets)

    def fileno(self) -> int:
        """Readable where there is something to read()."""
        return self._poll.fileno()

    def check_every(self, nth: int) -> None:
        """Of the streams opened from now on every nth is held to the letter."""
        self._nth = nth

    def open(self, openings: Sequence[Opening], seconds: float, at_once: int = AT_ONCE) -> None:
        """Open them all, so many under way at a time. Raises CannotMeasure where that is not done in `seconds`."""
        deadline = time.monotonic() + seconds
        waiting = deque(openings)
        under_way: dict[int, Opening] = {}
        head: dict[int, bytes] = {}
        while waiting or under_way:
            if time.monotonic() > deadline:
                missing = len(waiting) + len(under_way)
                raise CannotMeasure(f"{missing} of {len(openings)} streams were not open after {seconds:.0f} s")
            while waiting and len(under_way) < at_once:
                opening = waiting.popleft()
                under_way[self._connect(opening)] = opening
            for fd, _ in self._poll.poll(0.1, READY_MAX):
                data = self._read(fd)
                opening_ = under_way.get(fd)
                if opening_ is None:
                    continue
                head[fd] = head.get(fd, b"") + data
                if fd not in self._sockets:
                    raise CannotMeasure(f"a stream was refused: {head[fd][:200].decode(errors='replace')!r}")
                if opening_.then and b" 101 " in head[fd]:
                    self._sockets[fd][0].sendall(opening_.then)
                    opening_.then = b""
                if opening_.begun in head[fd]:
                    del under_way[fd], head[fd]

    def _connect(self, opening: Opening) -> int:
        connection = socket.socket()
        connection.settimeout(CONNECT_SECONDS_MAX)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        connection.connect(self._address)
        connection.sendall(opening.request)
        connection.setblocking(False)
        fd = connection.fileno()
        self._sockets[fd] = (connection, self._count)
        if self._nth and self._count % self._nth == 0:
            self._checkers[fd] = FrameChecker()
        self._count += 1
        self._poll.register(fd, select.EPOLLIN)
        return fd

    def read(self, seconds: float) -> None:
        """What there is now, or else the first that comes within `seconds`. Raises BadFrame of a checked stream."""
        sockets, buffer, tails, checkers = self._sockets, self._buffer, self._tails, self._checkers
        count = buffer.count
        for fd, _ in self._poll.poll(seconds, READY_MAX):
            size = self._receive(sockets[fd][0])
            if size <= 0:
                if size == 0:
                    self._end(fd)
                continue
            self.reads += 1
            # Most reads end with a chunk; where one does not, the line of an id may have been cut in two.
            if buffer[size - 1] != 10 or buffer[size - 3] != 10 or fd in tails:
                data = tails.pop(fd, b"") + buffer[:size]
                self.delivered += data.count(EVENT)
                if not data.endswith(b"\n\r\n"):
                    tails[fd] = bytes(data[-len(EVENT) + 1 :])
            else:
                self.delivered += count(EVENT, 0, size)
            if fd in checkers:
                checkers[fd].feed(bytes(buffer[:size]))
            if self.seen is not None:
                self.seen(sockets[fd][1], bytes(buffer[:size]))

    def _read(self, fd: int) -> bytes:
        """The slower way, for the beginning: nothing is counted yet."""
        size = self._receive(self._sockets[fd][0])
        data = bytes(self._buffer[: max(0, size)])
        if fd in self._checkers:
            self._checkers[fd].feed(data)
        if size == 0:
            self._end(fd)
        elif not data.endswith(b"\n\r\n"):
            self._tails[fd] = data[-len(EVENT) + 1 :]
        else:
            self._tails.pop(fd, None)
        return data

    def _receive(self, connection: socket.socket) -> int:
        """Bytes in the buffer; 0 at the end, -1 where there is nothing."""
        try:
            return connection.recv_into(self._buffer)
        except BlockingIOError:
            return -1
        except ConnectionError:
            return 0

    def _end(self, fd: int) -> None:
        connection, _ = self._sockets.pop(fd)
        self._tails.pop(fd, None)
        connection.close()
        self.ended += 1

    def settle(self, seconds: float = 5.0) -> None:
        """Read until it is quiet, and count from there."""
        deadline = time.monotonic() + seconds
        before = -1
        while self.reads != before and time.monotonic() < deadline:
            before = self.reads
            quiet = time.monotonic() + QUIET_SECONDS
            while time.monotonic() < quiet:
                self.read(QUIET_SECONDS / 4)
        self.delivered = self.reads = 0

    def check(self) -> int:
        """How many streams were held to the letter, and stand whole. Raises BadFrame."""
        for checker in self._checkers.values():
            checker.finish()
        return len(self._checkers)

    def cut(self) -> None:
        """All connections at once, without a goodbye."""
        for connection, _ in self._sockets.values():
            connection.close()
        self._sockets.clear()
        self._tails.clear()
        self._checkers.clear()
        self._count = 0

    def close(self) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._poll.close()
