"""The checker of streams takes what a server may send, cut anywhere, and nothing else."""

import pytest

from server.bench.frames import BadFrame, FrameChecker

pytestmark = pytest.mark.pure

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
FIRST = b"retry: 1500\n\nevent: sync\ndata: {}\n\n"


def event(number: int, name: bytes = b"progress") -> bytes:
    return b'id: %d\nevent: %b\ndata: {"version":%d}\n\n' % (number, name, number)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


WHOLE = HEAD + chunk(FIRST) + chunk(event(1) + event(2)) + chunk(b": heartbeat\n\n") + chunk(event(7)) + b"0\r\n\r\n"


def checked(data: bytes, step: int = 1 << 20) -> FrameChecker:
    checker = FrameChecker()
    for at in range(0, len(data), step):
        checker.feed(data[at : at + step])
    checker.finish()
    return checker


@pytest.mark.parametrize("step", [1, 2, 3, 7, 50, 10_000])
def test_what_is_right_is_taken_however_it_is_cut(step: int) -> None:
    assert checked(WHOLE, step).events == 3


def test_a_stream_may_go_on_and_need_not_be_chunked() -> None:
    assert checked(HEAD + chunk(event(1))).events == 1
    assert checked(PLAIN + FIRST + event(3) + event(4)).events == 2


def test_cursors_of_many_tasks_rise_by_their_number() -> None:
    first, later = (event(1).replace(b"id: 1", b"id: s%d" % number) for number in (9, 10))
    assert checked(HEAD + chunk(first) + chunk(later)).events == 2
    with pytest.raises(BadFrame, match="does not lie above"):
        checked(HEAD + chunk(later) + chunk(first))


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (HEAD + b"zz\r\nid: 1\n\n\r\n", "no chunk size"),
        (HEAD + b"\r\n" + chunk(event(1)), "no chunk size"),
        (HEAD + event(1) + event(2), "no chunk size"),
        (HEAD + b"%x\r\n%b\r\n" % (len(event(1)) - 1, event(1)), "does not end where its size says"),
        (HEAD + b"%x\r\n%b\r\n" % (len(event(1)) + 1, event(1)) + chunk(event(2)), "does not end where its size says"),
        (HEAD + b"0\r\n\r\n" + chunk(event(1)), "follows the last chunk"),
        (HEAD + chunk(event(1)[:-1]) + chunk(event(2)), "a second `id` without a blank line"),
        (HEAD + chunk(b"data: {}\ndata: {}\n\n"), "a second `data` without a blank line"),
        (HEAD + chunk(event(2)) + chunk(event(1)), "does not lie above"),
        (HEAD + chunk(event(2)) + chunk(event(2)), "does not lie above"),
        (HEAD + chunk(b"id: \ndata: {}\n\n"), "does not lie above"),
        (HEAD + chunk(b"ids: 1\n\n"), "no field of an event"),
        (HEAD + chunk(b'{"version":1}\n\n'), "no field of an event"),
        (HEAD + chunk(b"data: a\rdata: b\n\n"), "a carriage return"),
        (HEAD.replace(b"200 OK", b"503 Service Unavailable"), "not a stream"),
        (HEAD.replace(b"text/event-stream", b"application/json"), "not a stream"),
    ],
)
def test_what_is_wrong_is_told(stream: bytes, reason: str) -> None:
    for step in (1, 10_000):
        with pytest.raises(BadFrame, match=reason):
            checked(stream, step)


@pytest.mark.parametrize("missing", [1, 3, 5, 8, 20])
def test_what_is_cut_off_is_told(missing: int) -> None:
    whole = HEAD + chunk(event(1))
    with pytest.raises(BadFrame, match="truncated"):
        checked(whole[:-missing])
    with pytest.raises(BadFrame, match="truncated"):
        checked((PLAIN + event(1))[:-missing])
    with pytest.raises(BadFrame, match="truncated"):
        checked(b"")
