"""QStash as the bench plays it: signed callbacks, made beforehand, over connections that are kept, as fast as it is
answered or at a rate.
"""

import base64
import select
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from server.bench.machine import CannotMeasure
from server.bench.stage import KEY, Process, Task
from server.dispatch.signature import sign

CONNECTIONS = 64
ANSWER_SECONDS_MAX = 30.0
ANSWER_BYTES = 65_536
# Who is sent later than this after it was due had to wait for a connection: that counts.
LATE_SECONDS = 0.002
_LENGTH = b"content-length: "
_APPLIED = b'"outcome":"applied"'


def callback(process: Process, task: Task) -> bytes:
    """The request that ends the task's first run with a picture; good for five minutes."""
    path = f"/api/generate/callback?task={task.id}&attempt=1"
    answer = base64.b64encode(b'{"result":"https://example.com/picture.png"}').decode()
    body = msgspec.json.encode({"status": 200, "body": answer, "retried": 0, "maxRetries": 3})
    signature = sign(KEY, process.origin + path, body, time.time(), f"jwt_{task.id}")
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{process.address[1]}\r\nContent-Type: application/json\r\n"
        f"Upstash-Signature: {signature}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Readable(Protocol):
    """Something that has to be read while others are waited for."""

    def fileno(self) -> int: ...

    def read(self, seconds: float) -> None: ...


class Callers:
    """Kept connections. `sent` holds when by number of the request (the monotonic clock), `answered` how many were."""

    def __init__(self, process: Process, beside: Iterable[Readable] = ()) -> None:
        """Those `beside` are read meanwhile."""
        self._poll = select.epoll()
        self._beside = {reader.fileno(): reader for reader in beside}
        self._connections: dict[int, socket.socket] = {}
        self._partial: dict[int, bytes] = {}
        for fd in self._beside:
            self._poll.register(fd, select.EPOLLIN)
        for _ in range(CONNECTIONS):
            connection = socket.create_connection(process.address, timeout=10)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[connection.fileno()] = connection
            self._poll.register(connection.fileno(), select.EPOLLIN)
        self._idle = deque(self._connections)
        self.sent: dict[int, float] = {}
        self.answered = 0

    def run(self, requests: Sequence[bytes], seconds: float, rate: float | None = None) -> float:
        """Send them, for so long at most, and await all answers; how long that took, in seconds.

        Raises CannotMeasure where one is refused, or not answered in time.
        """
        began = time.monotonic()
        while True:
            elapsed = time.monotonic() - began
            while self._idle and (number := len(self.sent)) < len(requests) and elapsed < seconds:
                due = elapsed if rate is None else number / rate
                if due > elapsed:
                    break
                self.sent[number] = began + (due if elapsed - due > LATE_SECONDS else elapsed)
                self._connections[self._idle.popleft()].sendall(requests[number])
                elapsed = time.monotonic() - began
            over = len(self.sent) == len(requests) or elapsed >= seconds
            if over and self.answered == len(self.sent):
                return elapsed
            if elapsed > seconds + ANSWER_SECONDS_MAX:
                raise CannotMeasure(f"{len(self.sent) - self.answered} callbacks were not answered")
            self._turn(0.05 if rate is None or over else max(0.0, len(self.sent) / rate - elapsed))

    def forget(self) -> None:
        """Count anew; all have been answered."""
        self.sent.clear()
        self.answered = 0

    def _turn(self, seconds: float) -> None:
        for fd, _ in self._poll.poll(seconds):
            if fd in self._beside:
                self._beside[fd].read(0)
                continue
            more = self._connections[fd].recv(ANSWER_BYTES)
            if not more:
                raise CannotMeasure("the web process closed a connection before it had answered a callback")
            data = self._partial.pop(fd, b"") + more
            end = data.find(b"\r\n\r\n")
            at = data.find(_LENGTH, 0, end)
            if end < 0 or len(data) < end + 4 + int(data[at + len(_LENGTH) :].split(b"\r", 1)[0]):
                self._partial[fd] = data
                continue
            if not data.startswith(b"HTTP/1.1 200") or _APPLIED not in data:
                raise CannotMeasure(f"a callback was not applied: {data[:300].decode(errors='replace')!r}")
            self.answered += 1
            self._idle.append(fd)

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._poll.close()
