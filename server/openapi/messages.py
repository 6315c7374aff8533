"""What goes over a stream and over a WebSocket, as schemas; the types are those that read and encode it.

OpenAPI 3.1 has no place for the events of a stream or the messages of a socket: they are types among the others, and
their operations point to them in `x-itemSchema`, `x-receives` and `x-sends`.
"""

from typing import Any, Literal

import msgspec

from server.errors import Problem
from server.openapi.document import SCHEMAS, ProblemDetails, reference
from server.push.wire import Authenticated, Bye, Ending, Expiring, Gone, Pong, Refused, Subscribed, Sync
from server.push.ws import Auth, Ping, Subscribe, Unsubscribe
from server.tasks.snapshot import Snapshot


class Changed(msgspec.Struct):
    """A change of one task: the whole task, as it is now; `cursor` is for `after` when subscribing again."""

    type: Literal["status", "progress"]
    task: Snapshot
    cursor: str


class TaskGone(msgspec.Struct, rename="camel"):
    """A task that is no more."""

    task_id: str


class Farewell(msgspec.Struct):
    """The server is going; the `retry:` before it says when to come back."""

    reason: str


READ: tuple[type[msgspec.Struct], ...] = (Subscribe, Unsubscribe, Ping, Auth)
SENT: tuple[type[msgspec.Struct], ...] = (
    Sync,
    Farewell,
    TaskGone,
    Subscribed,
    Changed,
    Refused,
    Gone,
    Pong,
    Bye,
    Ending,
    Expiring,
    Authenticated,
    Snapshot,
)


def _event(
    name: str, about: str, data: type[msgspec.Struct] | type[Problem], identified: bool = False
) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "event": {"const": name},
        "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": reference(data)},
    }
    if identified:
        properties["id"] = {"type": "string", "description": "The cursor: the version (one task), or opaque (many)."}
    return {"type": "object", "description": about, "properties": properties, "required": ["event", "data"]}


def _either(about: str, tags: dict[str, type]) -> dict[str, Any]:
    mapping = {tag: SCHEMAS + kind.__name__ for tag, kind in tags.items()}
    return {
        "description": about,
        "oneOf": [reference(kind) for kind in dict.fromkeys(tags.values())],
        "discriminator": {"propertyName": "type", "mapping": mapping},
    }


SCHEMAS_OF_STREAMS: dict[str, Any] = {
    "StreamEvent": {
        "description": "One event of the stream; `data` is JSON on one line.",
        "oneOf": [
            _event("sync", "The first: how this stream joined.", Sync, identified=True),
            _event("status", "The status or the attempt changed.", Snapshot, identified=True),
            _event("progress", "Mere progress; newer takes the place of older.", Snapshot, identified=True),
            _event("deleted", "A task of many is no more.", TaskGone),
            _event("auth_expiring", "The access token, and the stream with it, ends in a minute or less.", Ending),
            _event("auth_expired", "It has ended; with a newer one the stream goes on.", ProblemDetails),
            _event("bye", "The server is going.", Farewell),
            _event("refused", "What would be a 4xx or 5xx, which would close EventSource for good.", ProblemDetails),
        ],
    },
    "SocketRequest": _either(
        "What you send over the WebSocket.",
        {"subscribe": Subscribe, "unsubscribe": Unsubscribe, "ping": Ping, "auth": Auth},
    ),
    "SocketMessage": _either(
        "What the server sends over the WebSocket.",
        {
            "subscribed": Subscribed,
            "status": Changed,
            "progress": Changed,
            "refused": Refused,
            "deleted": Gone,
            "pong": Pong,
            "bye": Bye,
            "auth_expiring": Expiring,
            "authenticated": Authenticated,
        },
    ),
}
