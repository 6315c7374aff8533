"""A task as the world sees it: the snapshot, the same JSON object on every transport, encoded once.

Pure. `TaskChange` is one version of one task with its snapshot already encoded, as it travels from the store
over the bus to every follower.
"""

import datetime as dt
import re

import asyncpg
import msgspec

from server.tasks.state import TERMINAL, Status

# Ours are 22 characters; the width is for the ids of an app that had its own before.
TASK_ID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One task at one version. Times are ISO 8601 UTC; progress is percent; *Ms are milliseconds.

    queuePosition, etaMs and pollAfterMs are advisory: not versioned, null where unknown.
    """

    task_id: str
    status: Status
    result: str | None = None
    error: str | None = None
    error_code: str | None = None
    prompt: str
    params: msgspec.Raw
    progress: int | None = None
    message: str | None = None
    preview: str | None = None
    step: int | None = None
    steps: int | None = None
    attempt: int
    version: int
    status_version: int
    cancelled: bool = False
    batch_id: str | None = None
    queue_position: int | None = None
    eta_ms: int | None = None
    poll_after_ms: int | None = None
    created_at: dt.datetime
    updated_at: dt.datetime


class TaskChange(msgspec.Struct, frozen=True, gc=False):
    """A version of a task, ready to send.

    `seq` is its number among its owner's events, 0 where unknown; `at` when it was made, in Unix seconds.
    """

    task_id: str
    version: int
    status_version: int
    status: Status
    seq: int
    at: float
    body: bytes
    user_id: str = ""

    @property
    def is_status(self) -> bool:
        """Whether this is a change of status or attempt, which no follower may miss."""
        return self.version == self.status_version

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL


class _Head(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    task_id: str
    version: int
    status_version: int
    status: Status
    updated_at: dt.datetime


_encode = msgspec.json.Encoder().encode
_decode_head = msgspec.json.Decoder(_Head).decode
_decode_snapshot = msgspec.json.Decoder(Snapshot).decode


def from_row(row: asyncpg.Record, public_url: str) -> TaskChange:
    """A row of the view taskbeam.changes; results stored relative are shown below `public_url` (may be '')."""
    result = row["result"]
    if result is not None and result.startswith("/"):
        result = public_url + result
    body = _encode(
        Snapshot(
            task_id=row["task_id"],
            status=row["status"],
            result=result,
            error=row["error"],
            error_code=row["error_code"],
            prompt=row["prompt"],
            params=msgspec.Raw(row["params"]),
            progress=row["progress"],
            message=row["message"],
            preview=row["preview"],
            step=row["step"],
            steps=row["steps"],
            attempt=row["attempt"],
            version=row["version"],
            status_version=row["status_version"],
            cancelled=row["cancelled"],
            batch_id=row["batch_id"],
            created_at=row["created_at"],
            updated_at=row["at"],
        )
    )
    return TaskChange(
        row["task_id"],
        row["version"],
        row["status_version"],
        row["status"],
        row["owner_seq"],
        row["at"].timestamp(),
        body,
        str(row["user_id"]),
    )


def from_body(body: bytes, seq: int = 0) -> TaskChange:
    """A change from an encoded snapshot, as the bus carries it. Raises msgspec.ValidationError or DecodeError."""
    try:
        head = _decode_head(body)
    except RecursionError as error:
        raise msgspec.DecodeError("nested too deeply") from error
    return TaskChange(
        head.task_id, head.version, head.status_version, head.status, seq, head.updated_at.timestamp(), body
    )


def with_advice(body: bytes, *, poll_after_ms: int | None) -> bytes:
    """The same snapshot with the advisory fields filled in."""
    return _encode(msgspec.structs.replace(_decode_snapshot(body), poll_after_ms=poll_after_ms))


def created_at(body: bytes) -> dt.datetime:
    """When the task of this snapshot was accepted."""
    return _decode_snapshot(body).created_at
