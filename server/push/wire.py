"""What goes over the wire to followers: SSE and WebSocket frames, and the cursors in them. Pure.

Data is JSON on one line, ids and event names come from a closed set, so no value can end a line and begin an
event of its own (WHATWG HTML, 9.2.6: a lone CR ends a line too, and JSON escapes it).
"""

import datetime as dt
import re
from typing import Any, Literal, TypeAlias

import msgspec

from server.errors import AccessTokenExpired, Problem, problem_body
from server.tasks.snapshot import TaskChange

Mode: TypeAlias = Literal["live", "replay", "snapshot"]
VERSION_MAX = 2**31 - 1
SEQ_MAX = 2**53

HEARTBEAT = b": heartbeat\n\n"
TEXT = 0x81  # a whole message of text, in one frame


class BadCursor(ValueError):
    """Not a version, or not an opaque cursor of ours."""


class Sync(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """How a follower joined: from its cursor (0 without one) to the newest; `recovered`: nothing was lost.

    live: there was nothing to send; replay: what lies after the cursor follows; snapshot: the present follows,
    because there was no cursor, or one that could not be continued.
    """

    from_: int | str
    to: int | str
    mode: Mode
    recovered: bool


class Subscribed(msgspec.Struct, frozen=True, tag="subscribed", rename="camel"):
    """What is followed from now on, and how it was joined; `taskIds` is empty for all tasks."""

    task_ids: list[str]
    sync: Sync


class Ending(msgspec.Struct, frozen=True, rename="camel"):
    """The access token ends at `expiresAt`, and the stream with it: time for a newer one."""

    expires_at: dt.datetime


class Expiring(msgspec.Struct, frozen=True, tag="auth_expiring", rename="camel"):
    """The access token ends at `expiresAt`, and the connection with it, unless `auth` brings a newer one."""

    expires_at: dt.datetime


class Authenticated(msgspec.Struct, frozen=True, tag="authenticated", rename="camel"):
    """The newer access token is good until `expiresAt`; null where none is needed. What is followed goes on."""

    expires_at: dt.datetime | None


class Refused(msgspec.Struct, frozen=True, tag="refused", rename="camel"):
    """What was asked for and is not given; `problem` says why.

    The connection stays, but where the right to it has ended: then it closes with 1008.
    """

    task_ids: list[str]
    problem: dict[str, Any]


class Gone(msgspec.Struct, frozen=True, tag="deleted", rename="camel"):
    """Tasks that are no more; told to those who follow all."""

    task_ids: list[str]


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """The answer to a ping."""


class Bye(msgspec.Struct, frozen=True, tag="bye", rename="camel"):
    """The server is going, and closes with 1012; to be asked again in `retryMs` milliseconds."""

    reason: str
    retry_ms: int


def parse_version(text: str) -> int:
    """The cursor of one task: its version, 0 for none. Raises BadCursor."""
    if not re.fullmatch(r"[0-9]{1,10}", text, re.ASCII) or int(text) > VERSION_MAX:
        raise BadCursor("a cursor of one task is the version of the last event, a whole number")
    return int(text)


def owner_cursor(seq: int) -> str:
    """The opaque cursor of a stream of many tasks: all of the owner's events up to `seq` were delivered."""
    return f"s{seq}"


def parse_owner_cursor(text: str) -> int:
    """The number in an opaque cursor; `0` means none. Raises BadCursor."""
    if text == "0":
        return 0
    if not re.fullmatch(r"s[0-9]{1,16}", text, re.ASCII) or int(text[1:]) > SEQ_MAX:
        raise BadCursor("the cursor of many tasks is the id of the last event, as it was sent")
    return int(text[1:])


def instant(seconds: float) -> dt.datetime:
    """Unix seconds as they go out."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def kind(change: TaskChange) -> Literal["status", "progress"]:
    """The name of the event: a change of status or attempt, or mere progress."""
    return "status" if change.is_status else "progress"


def sse(event: str, data: bytes, event_id: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {event}\n" if event_id is None else f"id: {event_id}\nevent: {event}\n"
    return head.encode() + b"data: " + data + b"\n\n"


def sse_change(change: TaskChange, event_id: str | None) -> bytes:
    return sse(kind(change), change.body, event_id)


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body (RFC 9112, 7.1); `data` must not be empty, that would be the last one."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def sse_chunk(event: bytes, data: bytes, event_id: bytes) -> bytes:
    """chunk() of sse(), in one piece: this is made for each event of a task that is pushed to one follower."""
    size = len(event_id) + len(event) + len(data) + 21  # what stands around the three of them
    return b"%x\r\nid: %b\nevent: %b\ndata: %b\n\n\r\n" % (size, event_id, event, data)


def sse_retry(ms: int) -> bytes:
    """How long the browser waits before it reconnects by itself."""
    return f"retry: {ms}\n\n".encode()


def sse_sync(sync: Sync, event_id: str | None = None) -> bytes:
    return sse("sync", msgspec.json.encode(sync), event_id)


def sse_refused(problem: Problem) -> bytes:
    """What would be a 4xx or 5xx: told in a stream, because a status code would close EventSource for ever."""
    return sse("refused", msgspec.json.encode(problem_body(problem)))


def sse_deleted(task_id: str) -> bytes:
    """A task of many is gone. Without an id: it is no version of it."""
    return sse("deleted", msgspec.json.encode({"taskId": task_id}))


def sse_ending(expires_at: float) -> bytes:
    """`expires_at` in Unix seconds. Without an id: it is no version of anything."""
    return sse("auth_expiring", msgspec.json.encode(Ending(instant(expires_at))))


def sse_ended(problem: Problem) -> bytes:
    """The right to the stream has ended; it goes on from its cursor where a newer proof is brought."""
    if isinstance(problem, AccessTokenExpired):
        return sse("auth_expired", msgspec.json.encode(problem_body(problem)))
    return sse_refused(problem)


def sse_bye(reason: str) -> bytes:
    return sse("bye", msgspec.json.encode({"reason": reason}))


def ws_change(change: TaskChange, cursor: str) -> bytes:
    """`{"type":"status"|"progress","task":snapshot,"cursor":…}`"""
    return b'{"type":"%s","task":%s,"cursor":"%s"}' % (kind(change).encode(), change.body, cursor.encode())


def ws_message(message: Subscribed | Refused | Gone | Pong | Bye | Expiring | Authenticated) -> bytes:
    return msgspec.json.encode(message)


def ws_frame(message: bytes) -> bytes:
    """A message of text in the frame that a server sends it in: not masked, not compressed (RFC 6455, 5.2)."""
    size = len(message)
    if size < 126:
        return b"%c%c%b" % (TEXT, size, message)
    if size < 65_536:
        return b"%c\x7e%b%b" % (TEXT, size.to_bytes(2, "big"), message)
    return b"%c\x7f%b%b" % (TEXT, size.to_bytes(8, "big"), message)
