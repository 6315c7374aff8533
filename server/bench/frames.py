"""Holds a stream to the letter: chunked framing (RFC 9112, 7.1) and the grammar of server-sent events (WHATWG HTML,
9.2.5), with rising ids. Pure.

Stricter than a browser, which overlooks most of this: one `id`, `event` and `data` an event, no field it does not know.
"""

import re

LINE_BYTES_MAX = 4 * 1024 * 1024
_SIZE = re.compile(rb"[0-9a-fA-F]{1,8}")
_FIELDS = (b"id", b"event", b"data", b"retry")
_NUMBER = re.compile(rb"\d+")


class BadFrame(Exception):
    """What is wrong with a stream, in one line."""


class FrameChecker:
    """`feed()` what the socket gave, from its first byte on; `finish()` where it should be whole. Both raise BadFrame.

    `events` counts the events with an id.
    """

    def __init__(self) -> None:
        self.events = 0
        self._data = bytearray()  # as it came, before the chunks were taken apart
        self._chunked = False
        self._head = True
        self._over = False
        self._body = bytearray()
        self._fields: set[bytes] = set()
        self._last_id: tuple[int, ...] = ()

    def feed(self, data: bytes) -> None:
        self._data += data
        if self._head and not self._read_head():
            return
        if not self._chunked:
            self._read_lines(self._data)
            return
        while self._read_chunk():
            pass

    def finish(self) -> None:
        """Nothing more is to come, or to be waited for."""
        if self._head or self._data or self._body or self._fields:
            raise BadFrame("truncated: the stream stops in the middle of an event or a chunk")

    def _read_head(self) -> bool:
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._data[:end]).lower().split(b"\r\n")
        if not head[0].startswith(b"http/1.1 200"):
            raise BadFrame(f"not a stream: {head[0].decode(errors='replace')}")
        if not any(line.startswith(b"content-type: text/event-stream") for line in head):
            raise BadFrame("not a stream: another content type")
        self._chunked = b"transfer-encoding: chunked" in head
        del self._data[: end + 4]
        self._head = False
        return True

    def _read_chunk(self) -> bool:
        """Whether there was a whole one."""
        end = self._data.find(b"\r\n")
        line = bytes(self._data if end < 0 else self._data[:end])
        if self._over and line:
            raise BadFrame("something follows the last chunk")
        if end < 0:
            if len(line) > 8 and not _SIZE.fullmatch(line.removesuffix(b"\r")):
                raise BadFrame(f"no chunk size: {line[:20]!r}")
            return False
        if not _SIZE.fullmatch(line):
            raise BadFrame(f"no chunk size: {line[:20]!r}")
        size = int(line, 16)
        whole = end + 2 + size + 2
        if len(self._data) < whole:
            return False
        if self._data[whole - 2 : whole] != b"\r\n":
            raise BadFrame(f"a chunk of {size} bytes does not end where its size says")
        self._body += self._data[end + 2 : whole - 2]
        del self._data[:whole]
        self._over = size == 0
        self._read_lines(self._body)
        return True

    def _read_lines(self, text: bytearray) -> None:
        begin = 0
        while (end := text.find(b"\n", begin)) >= 0:
            self._read_line(bytes(text[begin:end]))
            begin = end + 1
        del text[:begin]
        if len(text) > LINE_BYTES_MAX:
            raise BadFrame("a line without an end")

    def _read_line(self, line: bytes) -> None:
        if b"\r" in line:
            raise BadFrame("a carriage return in a line")
        if not line:
            self._fields.clear()
            return
        if line.startswith(b":"):
            return
        field, colon, value = line.partition(b": ")
        if not colon or field not in _FIELDS:
            raise BadFrame(f"no field of an event: {line[:40]!r}")
        if field in self._fields:
            raise BadFrame(f"a second `{field.decode()}` without a blank line before it")
        self._fields.add(field)
        if field == b"id":
            self._rise(value)

    def _rise(self, value: bytes) -> None:
        number = tuple(map(int, _NUMBER.findall(value)))
        if not number or number <= self._last_id:
            raise BadFrame(f"id {value[:40].decode(errors='replace')!r} does not lie above the one before it")
        self._last_id = number
        self.events += 1
