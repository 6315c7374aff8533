"""The description of the web process's API. A test holds its paths to the route table in app.py."""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server import errors
from server.health import Liveness, Readiness
from server.openapi import document as build
from server.openapi.generators import GENERATORS, JOB
from server.openapi.members import MEMBERS, REFINED
from server.openapi.messages import READ, SCHEMAS_OF_STREAMS, SENT
from server.openapi.operation import JSON, ORIGIN, Answer, Example, Operation, get
from server.openapi.sessions import SESSIONS, signed_in
from server.openapi.tasks import STREAMS, TASKS

ABOUT = """\
Long-running tasks, and their status pushed to whoever follows them. JSON in and out; times are ISO 8601 UTC.

Without sign-in there is one local user, and the server answers on loopback only, to its own host names and its \
own origin. With sign-in a request carries the user's access token, as a bearer token or in a cookie \
(`POST /api/session`), never in its URL. What is another user's is answered like what is not there. Three routes are \
for QStash and generators and bring a proof of their own: a signature or a token.

Whatever is not a success is `application/problem+json` (RFC 9457) with a stable `code`; its `requestId` is in the \
log. A path that there is not gives `not_found`, a method that a path has not `method_not_allowed`. Bodies are counted \
while they are read; a limit stands at each."""

SERVER = (
    get("/healthz", "getLiveness", "Server", "Whether the process answers", Liveness, "It does.", {"status": "ok"}),
    Operation(
        path="/readyz",
        method="get",
        id="getReadiness",
        tag="Server",
        summary="Whether it can do its work, and which part is away",
        answers={200: Answer("It can.", Readiness), 503: Answer("It cannot.", Readiness)},
        examples=(
            Example(
                name="ready",
                about="All is well",
                status=200,
                answer={"status": "ready", "postgres": "up", "redis": "up", "qstash": "up"},
            ),
        ),
    ),
    signed_in(
        get("/metrics", "getMetrics", "Server", "Figures for Prometheus", "text/plain", "The figures."),
        errors.Forbidden,
        errors.Unavailable,
    ),
    get("/openapi.json", "getDescription", "Server", "This description", JSON, "An OpenAPI 3.1 document."),
    get("/", "getStudio", "Pages", "A prompt and its picture", "text/html", "The page."),
    get("/dashboard", "getDashboard", "Pages", "All your tasks, live", "text/html", "The page."),
    get("/docs", "getDocs", "Pages", "This description, for people", "text/html", "The page."),
)

# Whoever knows a picture's name may see it; to follow a task the user has to be signed in still.
FOLLOWING = {"getTask", *(stream.id for stream in STREAMS)}
OF_USERS = tuple(
    task if task.id == "getPicture" else signed_in(task, *([errors.SessionEnded] if task.id in FOLLOWING else []))
    for task in (*TASKS, *STREAMS)
)
OPERATIONS = (*OF_USERS, *SESSIONS, *GENERATORS, *SERVER)

API = build.Api(
    title="Taskbeam",
    about=ABOUT,
    origin=ORIGIN,
    tags={
        "Tasks": "Ask for one, look at it, list them, try one again.",
        "Streams": "Be told instead of asking.",
        "Session": "Who is calling.",
        "Generators": "For QStash and generators; each brings a proof of its own.",
        "Server": "How it does.",
        "Pages": "For people.",
    },
    operations=OPERATIONS,
    headers=("X-Request-Id",),
    security={
        "accessToken": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "The user's, of the configured issuer; a cookie will do as well. Without sign-in none.",
        },
        "qstashSignature": {
            "type": "apiKey",
            "in": "header",
            "name": "Upstash-Signature",
            "description": "A JWT (HS256) over URL and body, made with the current or the next signing key.",
        },
        "runToken": {
            "type": "http",
            "scheme": "bearer",
            "description": "The value of Taskbeam-Progress-Token: for one attempt of one task.",
        },
        "webhookToken": {
            "type": "apiKey",
            "in": "query",
            "name": "token",
            "description": "For the webhooks of one run; it stands in the URL that the generator is told.",
        },
    },
    everywhere=(errors.ForeignOrigin, errors.ForeignHost, errors.HeadTooLarge, errors.Problem),
    problems=errors.all_problems(),
    read=READ,
    sent=SENT,
    members=MEMBERS,
    refine=REFINED,
    more_schemas=SCHEMAS_OF_STREAMS,
    webhooks={"job": JOB},
)


def document() -> dict[str, Any]:
    """The whole description as a JSON object."""
    return build.document(API)


async def answer(_: Request) -> Response:
    """GET /openapi.json"""
    return Response(msgspec.json.encode(document()), media_type=JSON)
