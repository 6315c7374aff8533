"""Ways to publish: as our own processes do, straight to Redis; and to nchan, which has a form of its own there."""

import socket
from collections.abc import Sequence
from typing import Protocol

from server.push.hub import task_topic, user_topic
from server.push.publisher import encode
from server.tasks.snapshot import TaskChange

ANSWER_BYTES = 1 << 16
SEND_SECONDS_MAX = 10.0


class Feed(Protocol):
    def send(self, changes: Sequence[TaskChange], many: bool) -> None:
        """Publish them, in order; `many`: it is the channel of their user that is followed. Raises OSError."""

    def close(self) -> None: ...


class RedisFeed:
    """Both messages of each change, in one pipeline, whose answers are not asked for."""

    def __init__(self, port: int) -> None:
        self._connection = socket.create_connection(("127.0.0.1", port), timeout=SEND_SECONDS_MAX)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.sendall(b"CLIENT REPLY OFF\r\n")

    def send(self, changes: Sequence[TaskChange], many: bool) -> None:
        commands: list[bytes] = []
        for change in changes:
            for topic, data in encode(change):
                name = topic.encode()
                head = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n" % (len(name), name, len(data))
                commands += (head, data, b"\r\n")
        self._connection.sendall(b"".join(commands))

    def close(self) -> None:
        self._connection.close()


class NchanFeed:
    """One POST a change, to the one channel that is followed: there is no other that would cost the follower."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._connection = socket.create_connection(address, timeout=SEND_SECONDS_MAX)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, changes: Sequence[TaskChange], many: bool) -> None:
        requests: list[bytes] = []
        for change in changes:
            channel = user_topic(change.user_id) if many else task_topic(change.task_id)
            head = (
                f"POST /pub?channel={channel} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-EventSource-Event: progress\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(change.body)}\r\n\r\n"
            )
            requests += (head.encode(), change.body)
        self._connection.sendall(b"".join(requests))
        self._connection.setblocking(False)
        try:
            while self._connection.recv(ANSWER_BYTES):
                pass
        except BlockingIOError:
            pass
        finally:
            self._connection.settimeout(SEND_SECONDS_MAX)

    def close(self) -> None:
        self._connection.close()
