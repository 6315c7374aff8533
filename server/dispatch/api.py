"""The QStash API of our own dispatcher, as far as a task needs it: publish, look up, dead letters, cancel, keys.

Every answer is JSON, errors are `{"error": text}`. openapi/dispatcher.py describes it from the types here.
"""

import asyncio
import hmac
import re
import time
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote

import msgspec
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server import failpoints
from server.body import decode_json, read_body
from server.db import DATABASE_ERRORS, Pool
from server.dispatch import shown
from server.dispatch.history import History
from server.dispatch.message import BadMessage, read_draft
from server.dispatch.messages import Messages
from server.dispatch.metrics import DispatcherMetrics
from server.dispatch.shown import DeadLetter, Event
from server.errors import Problem
from server.health import Liveness
from server.methods import allowed
from server.metrics import CONTENT_TYPE
from server.peer import is_of_this_machine
from server.request_id import HEADER, request_id_of
from server.settings import Settings

log = structlog.get_logger()

MESSAGE_BYTES_MAX = 1024 * 1024
CANCEL_BYTES_MAX = 1024 * 1024
CANCELLED_AT_ONCE_MAX = 10_000
HEADERS_MAX = 100
DEAD_LETTERS_MAX = 100
EVENTS_MAX = 1_000
PUBLISH_PREFIX = b"/v2/publish/"
MESSAGE_ID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)


class Cancel(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The body of a cancel of many; None: all messages."""

    message_ids: list[str] | None = None


class Published(msgspec.Struct, rename="camel", omit_defaults=True):
    """A message was stored; `deduplicated`: an earlier one with its deduplication id stands for it."""

    message_id: str
    url: str
    deduplicated: bool = False


class Cancelled(msgspec.Struct):
    """How many messages will not be delivered any more."""

    cancelled: int


class Keys(msgspec.Struct):
    """The keys that deliveries are signed with, now and after the next rotation."""

    current: str
    next: str


class DeadLetters(msgspec.Struct, omit_defaults=True):
    """Newest first; `cursor` asks for the next page and is left out on the last."""

    messages: list[DeadLetter]
    cursor: str | None = None


class Events(msgspec.Struct):
    """What happened to a message, newest first."""

    events: list[Event]


class Logs(msgspec.Struct):
    """The same, under the older name."""

    logs: list[Event]


class Refusal(msgspec.Struct):
    """Why the API does not do what was asked."""

    error: str


class Readiness(msgspec.Struct):
    """Whether it can do its work, and if not, which part is away."""

    status: Literal["ready", "unavailable"]
    postgres: Literal["up", "down"]


class ApiError(Exception):
    """What the API answers as `{"error": text}`."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def answer(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


async def on_error(request: Request, error: Exception) -> Response:
    """What no route answers, or cannot."""
    if isinstance(error, HTTPException):
        response = answer(Refusal(error.detail.lower()), error.status_code)
        if error.status_code == 405:
            response.headers["Allow"] = allowed(request.app.routes, request.scope)
        return response
    log.error("request_failed", path=request.url.path[:200], exc_info=error)
    return answer(Refusal("internal error"), 500)


class Api:
    """`routes` are to be served; every request but the health checks needs the token, /metrics from elsewhere only."""

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        messages: Messages,
        published: Callable[[], None],
        metrics: DispatcherMetrics,
    ) -> None:
        self._token = settings.qstash_token or ""
        self._keys = settings.signing_keys
        self._pool = pool
        self._messages = messages
        self._history = History(pool)
        self._published = published
        self._metrics = metrics
        self.routes = [
            Route("/v2/publish/{destination:path}", self._answering(self.publish), methods=["POST"]),
            Route("/v2/messages/{id}", self._answering(self.message), methods=["GET"]),
            Route("/v2/messages/{id}", self._answering(self.cancel), methods=["DELETE"]),
            Route("/v2/messages", self._answering(self.cancel_many), methods=["DELETE"]),
            Route("/v2/dlq", self._answering(self.dead_letters), methods=["GET"]),
            Route("/v2/dlq/{id}", self._answering(self.dead_letter), methods=["GET"]),
            Route("/v2/events", self._answering(self.events), methods=["GET"]),
            Route("/v2/logs", self._answering(self.events), methods=["GET"]),
            Route("/v2/keys", self._answering(self.keys), methods=["GET"]),
            Route("/healthz", self.alive, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
            Route("/metrics", self.figures, methods=["GET"]),
        ]

    def _answering(self, endpoint: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def guarded(request: Request) -> Response:
            request_id = request_id_of(request.headers)
            structlog.contextvars.bind_contextvars(request_id=request_id)
            try:
                self._authorize(request)
                response: Response = await endpoint(request)
            except (ApiError, BadMessage, Problem) as error:
                status = 400 if isinstance(error, BadMessage) else error.status
                response = answer(Refusal(str(error)), status)
            except DATABASE_ERRORS as error:
                log.warning("request_not_taken", reason=type(error).__name__)
                response = answer(Refusal("the database cannot be reached"), 500)
            response.headers[HEADER] = request_id
            return response

        return guarded

    def _authorize(self, request: Request) -> None:
        given = _bearer(request)
        if not self._is_token(request.query_params.get("qstash_token", "") if given is None else given):
            raise ApiError(401, "unauthorized")

    def _is_token(self, given: str) -> bool:
        return bool(self._token) and hmac.compare_digest(given.strip().encode(), self._token.encode())

    async def publish(self, request: Request) -> Response:
        """Store a message for the URL in the path, which stands there raw, with its own query."""
        destination, options = _destination(request)
        if len(request.headers.raw) + len(options) > HEADERS_MAX:
            raise ApiError(400, f"more than {HEADERS_MAX} headers and options")
        body = await read_body(request, MESSAGE_BYTES_MAX)
        draft = read_draft(destination, [*request.headers.items(), *options], body)
        caller_ip = request.client.host if request.client else ""
        message_id, duplicate = await self._messages.publish(draft, caller_ip)
        failpoints.reached("message.committed")
        self._published()
        return answer(Published(message_id, destination, duplicate), 202 if duplicate else 200)

    async def message(self, request: Request) -> Response:
        row = await self._history.message(_id(request))
        if row is None:
            raise ApiError(404, "message not found")
        return answer(shown.message(dict(row)))

    async def events(self, request: Request) -> Response:
        """Of one message: there is no log but the messages themselves, so its states in between are not told."""
        query = _filters(request, {"messageId", "count"})
        if "messageId" not in query:
            raise ApiError(400, "messageId is needed here")
        row = await self._history.message(query["messageId"]) if MESSAGE_ID.fullmatch(query["messageId"]) else None
        told = shown.events(dict(row), int(time.time() * 1000)) if row else []
        told = told[: _count(query, EVENTS_MAX)]
        return answer(Logs(told) if request.url.path.endswith("/logs") else Events(told))

    async def dead_letters(self, request: Request) -> Response:
        query = _filters(request, {"messageId", "url", "count", "cursor"})
        count = _count(query, DEAD_LETTERS_MAX)
        if any("\0" in value for value in query.values()):
            return answer(DeadLetters([]))
        rows, more = await self._history.dead_letters(
            count, message_id=query.get("messageId"), url=query.get("url"), after=query.get("cursor")
        )
        cursor = rows[-1]["dlq_id"] if more and rows else None  # deleted meanwhile, perhaps
        # They may be large, and deliveries are under way.
        return await asyncio.to_thread(
            lambda: answer(DeadLetters([shown.dead_letter(dict(row)) for row in rows], cursor))
        )

    async def dead_letter(self, request: Request) -> Response:
        dlq_id = request.path_params["id"]
        rows, _ = await self._history.dead_letters(1, dlq_id=dlq_id) if MESSAGE_ID.fullmatch(dlq_id) else ([], False)
        if not rows:
            raise ApiError(404, "dead letter not found")
        return answer(shown.dead_letter(dict(rows[0])))

    async def cancel(self, request: Request) -> Response:
        if not await self._messages.cancel(_id(request)):
            raise ApiError(404, "message not found")
        return answer(Cancelled(1))

    async def cancel_many(self, request: Request) -> Response:
        """By ids, in the body or repeated in the query; all without any. An empty list means none."""
        unknown = set(request.query_params) - {"messageIds", "qstash_token"}
        if unknown:
            raise ApiError(400, f"unknown filter {min(unknown)!r}")
        body = await read_body(request, CANCEL_BYTES_MAX)
        ids = decode_json(body, Cancel).message_ids if body else None
        if "messageIds" in request.query_params:
            ids = [*(ids or []), *request.query_params.getlist("messageIds")]
        if ids is not None:
            if len(ids) > CANCELLED_AT_ONCE_MAX:
                raise ApiError(400, f"messageIds are {CANCELLED_AT_ONCE_MAX} at most")
            ids = list(filter(MESSAGE_ID.fullmatch, ids))
        return answer(Cancelled(await self._messages.cancel_many(ids)))

    async def keys(self, _: Request) -> Response:
        return answer(Keys(self._keys[0], self._keys[-1]))

    async def alive(self, _: Request) -> Response:
        return answer(Liveness("ok"))

    async def ready(self, _: Request) -> Response:
        try:
            await self._pool.fetchval("select 1", timeout=2)
        except DATABASE_ERRORS:
            return answer(Readiness("unavailable", "down"), 503)
        return answer(Readiness("ready", "up"))

    async def figures(self, request: Request) -> Response:
        """For a scraper on this machine, and one that brings the token: in its header, since URLs end up in logs."""
        if not is_of_this_machine(request) and not self._is_token(_bearer(request) or ""):
            return answer(Refusal("unauthorized"), 401)
        return Response(await self._metrics.exposition(), media_type=CONTENT_TYPE)


def _bearer(request: Request) -> str | None:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return given if scheme.lower() == "bearer" else None


def _id(request: Request) -> str:
    given: str = request.path_params["id"]
    if not MESSAGE_ID.fullmatch(given):
        raise ApiError(404, "message not found")
    return given


def _filters(request: Request, known: set[str]) -> dict[str, str]:
    """What is asked for, without the token. Raises ApiError where there is no such filter."""
    query = {name: value for name, value in request.query_params.items() if name != "qstash_token"}
    if unknown := query.keys() - known:
        raise ApiError(400, f"unknown filter {min(unknown)!r}")
    return query


def _count(query: dict[str, str], most: int) -> int:
    count = query.get("count", str(most))
    if not re.fullmatch(r"[0-9]{1,5}", count, re.ASCII) or not 1 <= int(count) <= most:
        raise ApiError(400, f"count is a number from 1 to {most}")
    return int(count)


def _destination(request: Request) -> tuple[str, list[tuple[str, str]]]:
    """The destination as it was sent, byte for byte, and the options among the query parameters."""
    raw = bytes(request.scope["raw_path"])
    if not raw.startswith(PUBLISH_PREFIX):
        raise ApiError(404, "not found")
    destination = raw.removeprefix(PUBLISH_PREFIX).decode("latin-1")
    # Some clients escape what stands in a path, all of it: no destination begins like that by itself.
    if re.match(r"https?(%3A|:%2F)", destination, re.IGNORECASE):
        destination = unquote(destination)
    options: list[tuple[str, str]] = []
    kept: list[str] = []
    for part in request.scope["query_string"].decode("latin-1").split("&"):
        name = unquote(part.partition("=")[0]).lower()
        if name.startswith("upstash-"):
            options += parse_qsl(part, keep_blank_values=True)
        elif name != "qstash_token":
            kept.append(part)
    query = "&".join(kept)
    return destination + (f"?{query}" if query else ""), options
