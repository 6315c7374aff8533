"""The description of the API (OpenAPI 3.1), made from the very types that validate and encode.

A test holds its paths to the route table, so a route without a description, or the reverse, does not land.
"""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server import errors
from server.dispatch.callback import Delivery
from server.dispatch.progress import ProgressReport
from server.generators import PROVIDERS
from server.tasks.endpoints import Accepted, DeleteOutcome, Generate, Page
from server.tasks.snapshot import Snapshot
from server.version import VERSION


class ProblemDetails(msgspec.Struct, rename="camel"):
    """RFC 9457; `code` is stable and for programs, `detail` a sentence for people."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str | None = None


class Outcome(msgspec.Struct):
    """What became of a callback or report: applied, duplicate or stale; `cancel`: the run need not go on."""

    ok: bool
    outcome: str
    cancel: bool = False


class WebhookBody(msgspec.Struct):
    """A prediction (replicate), a queue's news (fal), or an event with `type` and `data` (standard)."""

    status: str | None = None
    type: str | None = None


def _query(
    name: str, about: str, *, required: bool = False, kind: str = "string", many: bool = False
) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": {"type": kind}} if many else {"type": kind}
    return {"name": name, "in": "query", "required": required, "description": about, "schema": schema}


def _header(name: str, about: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": about, "schema": {"type": "string"}}


TASK = _query("taskId", "The task's id.", required=True)
WAIT = _query(
    "wait", "Hold the answer back until the version is above `after`, this many seconds at most (60).", kind="integer"
)
AFTER = _query("after", "The cursor: the version (one task) or id (many) of the last event seen.")
LAST_ID = _header("Last-Event-ID", "The cursor, as a browser sends it when it reconnects; beats `after`.")

# What goes over a stream is no request and answer; it is told in words.
ABOUT = {
    "/api/generate/events": """\
`retry:` comes first, then `event: sync` with `{"from","to","mode","recovered"}`: where this stream joins (`mode` is \
`live`, `replay` or `snapshot`) and whether anything was lost since the cursor. Then what lies after the cursor, then \
what happens: `event: status` and `event: progress`, `id:` the version (one task) or an opaque cursor (many), `data:` \
the task.

After the end of all named tasks the stream ends; asking again with that cursor is answered with 204, which keeps \
EventSource from coming back. A stream of all your tasks does not end. `event: bye` says that the server is going, \
`event: refused` carries a problem in place of a status code that would close EventSource for good; both come with a \
`retry:`. Where a task is deleted, `event: refused` ends the stream that follows it, and `event: deleted` with \
`{"taskId"}` tells a stream of many. A comment comes every 15 seconds.""",
    "/api/generate/ws": """\
You send `{"type":"subscribe","taskIds":[…],"after":{"ID":version}}`; for all your tasks, those to come included, \
`{"type":"subscribe","all":true,"after":"cursor"}`; `{"type":"unsubscribe","taskIds":[…]}` or `"all":true`; \
`{"type":"ping"}`.

The server sends `{"type":"subscribed","taskIds","sync"}` with `sync` as in the stream of events, then \
`{"type":"status"|"progress","task","cursor"}`; `{"type":"refused","taskIds","problem"}`, which ends nothing but what \
it names (a task that is deleted, for one); `{"type":"deleted","taskIds"}`, to those who follow all; \
`{"type":"pong"}`; and `{"type":"bye","reason","retryMs"}` before it closes with 1012. What is not JSON \
closes the connection with 1007, a message of more than 64 KiB with 1009.""",
}

# (path, method, summary, parameters, request type, {status: (what, response type or media type)}, problems)
OPERATIONS: tuple[tuple[str, str, str, list[dict[str, Any]], Any, dict[int, tuple[str, Any]], tuple[Any, ...]], ...] = (
    (
        "/api/generate",
        "post",
        "Accept a task",
        [],
        Generate,
        {202: ("The task was accepted.", Accepted)},
        (
            errors.InvalidBody,
            errors.InvalidPrompt,
            errors.UnknownGenerator,
            errors.TooLarge,
            errors.UnsupportedMediaType,
            errors.Unavailable,
        ),
    ),
    (
        "/api/generate",
        "get",
        "List your tasks, newest first",
        [
            _query("limit", "How many, 1 to 100; 20 without it.", kind="integer"),
            _query("cursor", "From the page before."),
            _query("status", "Only tasks of this status."),
        ],
        None,
        {200: ("A page.", Page)},
        (errors.InvalidParameter, errors.InvalidCursor, errors.Unavailable),
    ),
    (
        "/api/generate",
        "delete",
        "Delete a task with its log and its picture; a running one is cancelled first",
        [TASK],
        None,
        {200: ("It is gone.", DeleteOutcome)},
        (errors.InvalidParameter, errors.TaskNotFound, errors.TaskInUse, errors.Unavailable),
    ),
    (
        "/api/generate/status",
        "get",
        "The snapshot of a task, now or as soon as there is news",
        [TASK, WAIT, AFTER, _header("If-None-Match", "The ETag of the last answer.")],
        None,
        {200: ("The snapshot.", Snapshot), 304: ("It has not changed.", None)},
        (errors.InvalidParameter, errors.InvalidCursor, errors.TaskNotFound, errors.Unavailable),
    ),
    (
        "/api/generate/events",
        "get",
        "Follow one task, several, or all of yours, as server-sent events",
        [_query("taskId", "The task's id; may repeat; without it all your tasks.", many=True), AFTER, LAST_ID],
        None,
        {200: ("The stream.", "text/event-stream"), 204: ("The task had ended at the cursor.", None)},
        (errors.InvalidParameter, errors.InvalidCursor, errors.TaskNotFound),
    ),
    (
        "/api/generate/ws",
        "get",
        "Follow many tasks over one WebSocket",
        [],
        None,
        {101: ("The connection is a WebSocket now.", None)},
        (errors.ForeignOrigin,),
    ),
    (
        "/api/generate/callback",
        "post",
        "The callback of QStash, with Upstash-Signature over the raw body",
        [
            _query("task", "The task's id.", required=True),
            _query("attempt", "Its attempt.", required=True, kind="integer"),
        ],
        Delivery,
        {200: ("Taken note of.", Outcome)},
        (errors.BadSignature, errors.InvalidBody, errors.TooLarge, errors.UnknownTask, errors.Unavailable),
    ),
    (
        "/api/generate/progress",
        "post",
        "A generator's report, with the token of its run",
        [_header("Authorization", "Bearer and the value of Taskbeam-Progress-Token.")],
        ProgressReport,
        {200: ("Taken note of.", Outcome)},
        (errors.BadToken, errors.InvalidBody, errors.TaskNotFound, errors.TooLarge, errors.Unavailable),
    ),
    (
        "/api/generate/webhook/{provider}",
        "post",
        "The webhook of a generator that calls back itself, signed as its provider signs",
        [
            {
                "name": "provider",
                "in": "path",
                "required": True,
                "description": "Whose webhook it is.",
                "schema": {"type": "string", "enum": list(PROVIDERS)},
            },
            _query("task", "The task's id.", required=True),
            _query("attempt", "Its attempt.", required=True, kind="integer"),
            _query("token", "The token of this run's webhook.", required=True),
            _query("generator", "The generator's name, if it has one."),
        ],
        WebhookBody,
        {200: ("Taken note of.", Outcome)},
        (
            errors.InvalidParameter,
            errors.InvalidBody,
            errors.BadToken,
            errors.BadSignature,
            errors.UnknownProvider,
            errors.WebhookNotConfigured,
            errors.TaskNotFound,
            errors.TooLarge,
            errors.Unavailable,
        ),
    ),
    (
        "/results/{name}",
        "get",
        "A picture",
        [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}],
        None,
        {200: ("The picture.", "image/png")},
        (errors.NotFound,),
    ),
    ("/healthz", "get", "Whether the process answers", [], None, {200: ("It does.", "application/json")}, ()),
    (
        "/readyz",
        "get",
        "Whether it can do its work, and which part is away",
        [],
        None,
        {200: ("It can.", "application/json"), 503: ("It cannot.", "application/json")},
        (),
    ),
    ("/metrics", "get", "Figures for Prometheus", [], None, {200: ("The figures.", "text/plain")}, ()),
)


def document() -> dict[str, Any]:
    """The whole description as a JSON object."""
    types = [
        *(Generate, Accepted, DeleteOutcome, Page, Snapshot),
        *(Delivery, ProgressReport, WebhookBody, Outcome, ProblemDetails),
    ]
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    # Encoded once and sent as they are, so their types are told here.
    schemas["Page"]["properties"]["tasks"]["items"] = _reference(Snapshot)
    schemas["Snapshot"]["properties"]["params"] = {"type": "object"}
    paths: dict[str, dict[str, Any]] = {}
    for path, method, summary, parameters, body, answers, problems in OPERATIONS:
        operation: dict[str, Any] = {
            "summary": summary,
            **({"description": ABOUT[path]} if path in ABOUT else {}),
            "parameters": parameters,
            "responses": {str(status): _response(*answer) for status, answer in answers.items()},
        }
        for problem in problems:
            known = operation["responses"].setdefault(str(problem.status), _problem())
            known["description"] = f"{known['description']} `{problem.code}`".strip()
        if body is not None:
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _reference(body)}}}
        paths.setdefault(path, {})[method] = operation
    codes = {p.code: {"status": p.status, "title": p.title} for p in errors.all_problems()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Taskbeam", "version": VERSION, "x-problem-codes": codes},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _reference(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _response(about: str, kind: Any) -> dict[str, Any]:
    if kind is None:
        return {"description": about}
    if isinstance(kind, str):
        return {"description": about, "content": {kind: {}}}
    return {"description": about, "content": {"application/json": {"schema": _reference(kind)}}}


def _problem() -> dict[str, Any]:
    return {"description": "", "content": {"application/problem+json": {"schema": _reference(ProblemDetails)}}}


async def answer(_: Request) -> Response:
    """GET /openapi.json"""
    return Response(msgspec.json.encode(document()), media_type="application/json")
