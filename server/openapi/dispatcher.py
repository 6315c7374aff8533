"""The description of our dispatcher's API. A test holds its paths to the routes of the dispatcher."""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server.dispatch.api import (
    CANCEL_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    MESSAGE_ID,
    Cancel,
    Cancelled,
    Keys,
    Published,
    Readiness,
    Refusal,
    Shown,
)
from server.dispatch.message import METHODS, RETRIES_MAX, CallbackBody
from server.health import Liveness
from server.openapi import document as build
from server.openapi.operation import JSON, Answer, Example, Operation, Parameter, get

ORIGIN = "http://localhost:8080"
TOKEN = "QSTASH_TOKEN"  # noqa: S105  (what stands in its place in an example)
DESTINATION = "https://example.com/hook"
MESSAGE = "msg_taskbeam_3f1c5e0d9b7a4c268e21d0f7b6a59483"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}

ABOUT = """\
The part of the QStash API that a task needs, as the published QStash SDKs speak it: publish, look up, cancel, keys.

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


def _callback(about: str) -> dict[str, Any]:
    schema = {"content": {JSON: {"schema": build.reference(CallbackBody)}}, "required": True}
    taken = {"200": {"description": "Any 2xx: taken; else it is sent again, as a message is."}}
    return {"post": {"summary": about, "requestBody": schema, "responses": taken}}


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
                answer={
                    "messageId": MESSAGE,
                    "url": DESTINATION,
                    "method": "POST",
                    "maxRetries": 3,
                    "notBefore": 1_800_005_410_000,
                    "createdAt": 1_800_005_400_000,
                    "header": {"Content-Type": [JSON]},
                    "callerIP": "127.0.0.1",
                    "body": '{"hello":"world"}',
                },
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

MEMBERS: dict[str, dict[str, str]] = {
    "Published": {
        "messageId": "The message's id.",
        "url": "Where it goes.",
        "deduplicated": "There, and true, where an earlier message stands for it.",
    },
    "Cancel": {"messageIds": "Their ids; null for all messages."},
    "Cancelled": {"cancelled": "How many, without those that were finished."},
    "Keys": {"current": "Signs now.", "next": "After the next rotation."},
    "Refusal": {"error": "What is wrong, for people."},
    "Liveness": {"status": "Always `ok`."},
    "Readiness": {"status": "`unavailable` comes with 503.", "postgres": "The database."},
    "Shown": {
        "messageId": "The message's id.",
        "url": "Where it goes.",
        "method": "How it is delivered.",
        "maxRetries": "Deliveries after the first.",
        "notBefore": "When it may be delivered.",
        "createdAt": "When it was published.",
        "header": "What is sent along.",
        "callback": "Where every delivery is reported.",
        "failureCallback": "Where the last one is, if it failed.",
        "callbackHeader": "What is sent along with it.",
        "failureCallbackHeader": "What is sent along with it.",
        "callerIP": "Who published it.",
        "retryDelayExpression": "Milliseconds before a retry.",
        "label": "The first of them.",
        "labels": "All of them.",
        "body": "Where it is UTF-8.",
        "bodyBase64": "Where it is not.",
    },
    "CallbackBody": {
        "status": "What the destination answered; 0 where it could not be reached.",
        "header": "Of its answer.",
        "body": "Its answer.",
        "retried": "How many deliveries failed before.",
        "maxRetries": "How many may.",
        "sourceMessageId": "The message.",
        "url": "Where it went.",
        "method": "How.",
        "sourceHeader": "What was sent along.",
        "sourceBody": "What was sent.",
        "notBefore": "When it might be delivered.",
        "createdAt": "When it was published.",
        "callerIP": "Who published it.",
        "dlqId": "There on the failure callback: no delivery follows.",
    },
}

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
