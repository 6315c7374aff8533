"""The clients of the bench count each event once, however the stream is cut into reads, and hold it to the letter."""

import socket
import threading
from collections.abc import Iterator

import pytest

from server.bench.frames import BadFrame
from server.bench.machine import CannotMeasure
from server.bench.viewers import Opening, Viewers
from tests.bench.test_frames import FIRST, HEAD, chunk, event


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(10)
        yield listening


def opened(listener: socket.socket, first: bytes) -> tuple[Viewers, socket.socket]:
    """One stream, and the server's end of it; the server says `first`."""
    ends: list[socket.socket] = []

    def serve() -> None:
        end, _ = listener.accept()
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end.recv(1_000)
        end.sendall(first)
        ends.append(end)

    serving = threading.Thread(target=serve)
    serving.start()
    viewers = Viewers(listener.getsockname())
    viewers.check_every(1)
    viewers.open([Opening(b"GET / HTTP/1.1\r\n\r\n", b"event: sync\n")], 10)
    serving.join()
    viewers.settle()
    return viewers, ends[0]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 11, 64, 1_000])
def test_each_event_counts_once_wherever_it_is_cut(listener: socket.socket, size: int) -> None:
    viewers, end = opened(listener, HEAD + chunk(FIRST))
    stream = chunk(event(1)) + chunk(event(2) + event(3)) + chunk(b": heartbeat\n\n") + chunk(event(4, b"status"))
    for at in range(0, len(stream), size):
        end.sendall(stream[at : at + size])
        viewers.read(5)
    assert viewers.delivered == 4
    assert viewers.check() == 1
    end.close()
    viewers.read(5)
    assert (viewers.ended, len(viewers)) == (1, 0)
    viewers.close()


def test_a_stream_that_is_wrong_ends_the_run(listener: socket.socket) -> None:
    viewers, end = opened(listener, HEAD + chunk(FIRST))
    end.sendall(chunk(event(2)) + chunk(event(1)))
    with pytest.raises(BadFrame, match="does not lie above"):
        viewers.read(5)
    viewers.close()
    end.close()


def test_a_stream_that_is_refused_ends_the_run(listener: socket.socket) -> None:
    def serve() -> None:
        end, _ = listener.accept()
        with end:
            end.recv(1_000)
            end.sendall(b"HTTP/1.1 401 Unauthorized\r\n\r\n")

    threading.Thread(target=serve).start()
    viewers = Viewers(listener.getsockname())
    with pytest.raises(CannotMeasure, match=r"refused.*401 Unauthorized"):
        viewers.open([Opening(b"GET / HTTP/1.1\r\n\r\n", b"event: sync\n")], 10)
    viewers.close()
