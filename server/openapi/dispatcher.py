"""The description of our dispatcher's API. A test holds its paths to the routes of the dispatcher."""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server.dispatch.api import (
    CANCEL_BYTES_MAX,
    DEAD_LETTERS_MAX,
    EVENTS_MAX,
    MESSAGE_BYTES_MAX,
    MESSAGE_ID,
    Cancel,
    Cancelled,
    DeadLetters,
    Events,
    Keys,
    Logs,
    Published,
    Readiness,
    Refusal,
)
from server.dispatch.message import METHODS, RETRIES_MAX, CallbackBody
from server.dispatch.shown import DeadLetter, Shown
from server.health import Liveness
from server.openapi import document as build
from server.openapi.dispatcher_members import MEMBERS
from server.openapi.operation import JSON, Answer, Example, Operation, Parameter, get, query

ORIGIN = "http://localhost:8080"
TOKEN = "QSTASH_TOKEN"  # noqa: S105  (what stands in its place in an example)
DESTINATION = "https://example.com/hook"
MESSAGE = "msg_taskbeam_3f1c5e0d9b7a4c268e21d0f7b6a59483"
DEAD_LETTER = "1800005400000-5b21e5b7"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}

ABOUT = """\
The part of the QStash API that a task needs, as the published QStash SDKs speak it: publish, look up, dead \
letters, cancel, keys.

Every request but those for its health and for this description needs the token (QSTASH_TOKEN), as a bearer or in \
`?qstash_token=`. Whatever is not a success is `{"error": text}`."""

PUBLISH_ABOUT = """\
The destination stands in the path as it is, its own query included; escaped as a whole it is taken too. The body and \
its Content-Type are delivered as they are. Options stand in headers or, under the same names, in the query."""


def _option(name: str, about: str, **schema: Any) -> Parameter:
    return Parameter(name, "header", about, {"type": "string", **schema})


ID = Parameter("id", "path", "The message's id.", {"type": "string", "pattern": f"^{MESSAGE_ID.pattern}$"}, True)
UNAUTHORIZED = Answer("The token is missing or wrong.", Refusal)
UNKNOWN = Answer("There is no such message, or it is finished.", Refusal)
DOWN = Answer("The database cannot be reached.", Refusal)
TOO_LARGE = Answer("The body is too large.", Refusal)
WRONG = Answer("What is wrong with the request.", Refusal)


def _count(most: int) -> Parameter:
    schema = {"type": "integer", "minimum": 1, "maximum": most, "default": most}
    return Parameter("count", "query", "How many, at most.", schema)


def _of_message(path: str, name: str, summary: str, member: str, kind: type) -> Operation:
    """The events of a message, which have two names."""
    common = {"messageId": MESSAGE, "url": DESTINATION, "method": "POST", "maxRetries": 3}
    return Operation(
        path=path,
        method="get",
        id=name,
        tag="Messages",
        summary=summary,
        about="How it ended, or the state that it is in, and when it was published; the states between are not told. "
        "Of a message that there is not, nothing.",
        parameters=(query("messageId", "The message's id.", required=True), _count(EVENTS_MAX)),
        answers={200: Answer("Its events.", kind), 400: WRONG, 401: UNAUTHORIZED, 500: DOWN},
        security="token",
        examples=(
            Example(
                name="delayed",
                about="Of a message that waits for its time",
                status=200,
                query={"messageId": MESSAGE},
                headers=AUTHORIZED,
                answer={member: [{"time": 1_800_005_400_000, "state": "CREATED", **common}]},
            ),
        ),
    )


def _callback(about: str) -> dict[str, Any]:
    schema = {"content": {JSON: {"schema": build.reference(CallbackBody)}}, "required": True}
    taken = {"200": {"description": "Any 2xx: taken; else it is sent again, as a message is."}}
    return {"post": {"summary": about, "requestBody": schema, "responses": taken}}


SHOWN = {
    "messageId": MESSAGE,
    "url": DESTINATION,
    "method": "POST",
    "maxRetries": 3,
    "notBefore": 1_800_005_410_000,
    "createdAt": 1_800_005_400_000,
    "header": {"Content-Type": [JSON]},
    "callerIP": "127.0.0.1",
    "body": '{"hello":"world"}',
}
LETTER = {
    **SHOWN,
    "dlqId": DEAD_LETTER,
    "responseStatus": 404,
    "responseHeader": {"Content-Type": [JSON]},
    "responseBody": '{"error":"not found"}',
}

OPERATIONS = (
    Operation(
        path="/v2/publish/{destination}",
        method="post",
        id="publishMessage",
        tag="Messages",
        summary="Deliver the body to a URL, until it answers with a 2xx",
        about=PUBLISH_ABOUT,
        parameters=(
            Parameter("destination", "path", "An http:// or https:// URL.", {"type": "string"}, True),
            _option("Upstash-Method", "Of the delivery; POST without it.", enum=list(METHODS)),
            _option("Upstash-Retries", f"Deliveries after the first, 0 to {RETRIES_MAX}; 3 without it."),
            _option("Upstash-Retry-Delay", "Milliseconds before each, an expression such as `1000 * pow(2, retried)`."),
            _option("Upstash-Timeout", "How long one delivery may take, as `30s` or `2m`."),
            _option("Upstash-Delay", "How long to wait before the first, as `10s` or `1h`."),
            _option("Upstash-Not-Before", "When to deliver at the earliest, Unix seconds."),
            _option("Upstash-Deduplication-Id", "An earlier message with it stands for this one.", maxLength=256),
            _option("Upstash-Content-Based-Deduplication", "The same for equal messages.", enum=["true", "false"]),
            _option("Upstash-Callback", "The URL to which every delivery is reported; empty: none."),
            _option("Upstash-Failure-Callback", "The URL to which the last one is, if it failed; empty: none."),
            _option("Upstash-Redact-Fields", "What is not to be shown: `body`, `header`, `header[Name]`."),
            _option("Upstash-Label", "Labels, comma-separated."),
        ),
        body="*/*",
        body_bytes_max=MESSAGE_BYTES_MAX,
        answers={
            200: Answer("It is stored and will be delivered.", Published),
            202: Answer("An earlier message with its deduplication id stands for it.", Published),
            400: WRONG,
            401: UNAUTHORIZED,
            404: Answer("No destination has a line break.", Refusal),
            413: TOO_LARGE,
            500: DOWN,
        },
        security="token",
        examples=(
            Example(
                name="delayed",
                about="In ten seconds, with three retries",
                status=200,
                path={"destination": DESTINATION},
                headers={
                    **AUTHORIZED,
                    "Content-Type": JSON,
                    "Upstash-Delay": "10s",
                    "Upstash-Retries": "3",
                },
                body='{"hello":"world"}',
                answer={"messageId": MESSAGE, "url": DESTINATION},
            ),
        ),
        more={
            "callbacks": {
                "callback": {"{$request.header.Upstash-Callback}": _callback("What became of a delivery")},
                "failure": {"{$request.header.Upstash-Failure-Callback}": _callback("The last delivery failed")},
            }
        },
    ),
    Operation(
        path="/v2/messages/{id}",
        method="get",
        id="getMessage",
        tag="Messages",
        summary="A message, as it was published",
        parameters=(ID,),
        answers={200: Answer("The message.", Shown), 401: UNAUTHORIZED, 404: UNKNOWN, 500: DOWN},
        security="token",
        examples=(
            Example(
                name="message",
                about="A message",
                status=200,
                path={"id": MESSAGE},
                headers=AUTHORIZED,
                answer=SHOWN,
            ),
        ),
    ),
    Operation(
        path="/v2/messages/{id}",
        method="delete",
        id="cancelMessage",
        tag="Messages",
        summary="Deliver a message no more",
        parameters=(ID,),
        answers={200: Answer("It is cancelled.", Cancelled), 401: UNAUTHORIZED, 404: UNKNOWN, 500: DOWN},
        security="token",
        examples=(
            Example(
                name="message",
                about="A message",
                status=200,
                path={"id": MESSAGE},
                headers=AUTHORIZED,
                answer={"cancelled": 1},
            ),
        ),
    ),
    Operation(
        path="/v2/messages",
        method="delete",
        id="cancelMessages",
        tag="Messages",
        summary="Deliver many messages no more; all of them where none is named",
        about="Named in the body or in the query, or in both. An empty list means none.",
        parameters=(Parameter("messageIds", "query", "Their ids.", {"type": "array", "items": {"type": "string"}}),),
        body=Cancel,
        body_required=False,
        body_bytes_max=CANCEL_BYTES_MAX,
        answers={
            200: Answer("How many were cancelled.", Cancelled),
            400: WRONG,
            401: UNAUTHORIZED,
            413: TOO_LARGE,
            500: DOWN,
        },
        security="token",
        examples=(
            Example(
                name="some",
                about="These",
                status=200,
                headers=AUTHORIZED,
                body={"messageIds": [MESSAGE]},
                answer={"cancelled": 1},
            ),
            Example(name="all", about="All", status=200, headers=AUTHORIZED, answer={"cancelled": 0}),
        ),
    ),
    Operation(
        path="/v2/dlq",
        method="get",
        id="listDeadLetters",
        tag="Messages",
        summary="Messages that could not be delivered, newest first, each with the last answer to it",
        about="A page may be shorter than asked for where they are large.",
        parameters=(
            query("messageId", "Only that of this message."),
            query("url", "Only those that were to go to this URL."),
            _count(DEAD_LETTERS_MAX),
            query("cursor", "From the page before."),
        ),
        answers={200: Answer("A page.", DeadLetters), 400: WRONG, 401: UNAUTHORIZED, 500: DOWN},
        security="token",
        examples=(
            Example(
                name="message",
                about="Of one message",
                status=200,
                query={"messageId": MESSAGE},
                headers=AUTHORIZED,
                answer={"messages": [LETTER]},
            ),
        ),
    ),
    Operation(
        path="/v2/dlq/{id}",
        method="get",
        id="getDeadLetter",
        tag="Messages",
        summary="A message that could not be delivered, with the last answer to it",
        parameters=(msgspec.structs.replace(ID, about="The dead letter's id (dlqId)."),),
        answers={
            200: Answer("The dead letter.", DeadLetter),
            401: UNAUTHORIZED,
            404: Answer("There is no such dead letter.", Refusal),
            500: DOWN,
        },
        security="token",
        examples=(
            Example(
                name="letter",
                about="A dead letter",
                status=200,
                path={"id": DEAD_LETTER},
                headers=AUTHORIZED,
                answer=LETTER,
            ),
        ),
    ),
    _of_message("/v2/events", "listEvents", "What happened to a message, newest first", "events", Events),
    _of_message("/v2/logs", "listLogs", "The same under its older name", "logs", Logs),
    Operation(
        path="/v2/keys",
        method="get",
        id="getKeys",
        tag="Keys",
        summary="The keys that deliveries are signed with",
        answers={200: Answer("The keys.", Keys), 401: UNAUTHORIZED},
        security="token",
        examples=(
            Example(
                name="keys",
                about="The keys",
                status=200,
                headers=AUTHORIZED,
                answer={"current": "sig_…", "next": "sig_…"},
            ),
        ),
    ),
    get("/healthz", "getLiveness", "Server", "Whether the process answers", Liveness, "It does.", {"status": "ok"}),
    Operation(
        path="/readyz",
        method="get",
        id="getReadiness",
        tag="Server",
        summary="Whether it can do its work",
        answers={200: Answer("It can.", Readiness), 503: Answer("It cannot.", Readiness)},
        examples=(
            Example(name="ready", about="All is well", status=200, answer={"status": "ready", "postgres": "up"}),
        ),
    ),
    Operation(
        path="/metrics",
        method="get",
        id="getMetrics",
        tag="Server",
        summary="Figures for Prometheus; without the token for a scraper on the same machine only",
        answers={200: Answer("The figures.", "text/plain"), 401: UNAUTHORIZED},
        security="token",
        examples=(Example(name="metrics", about="The figures", status=200, headers=AUTHORIZED),),
    ),
    get("/openapi.json", "getDescription", "Server", "This description", JSON, "An OpenAPI 3.1 document."),
)

API = build.Api(
    title="Taskbeam dispatcher",
    about=ABOUT,
    origin=ORIGIN,
    tags={
        "Messages": "What is to be delivered.",
        "Keys": "Which deliveries are signed with.",
        "Server": "How it does.",
    },
    operations=OPERATIONS,
    security={
        "token": {"type": "http", "scheme": "bearer", "description": "The value of QSTASH_TOKEN."},
    },
    sent=(CallbackBody,),
    members=MEMBERS,
)


def document() -> dict[str, Any]:
    """The whole description as a JSON object."""
    return build.document(API)


async def answer(_: Request) -> Response:
    """GET /openapi.json"""
    return Response(msgspec.json.encode(document()), media_type=JSON)
