"""The QStash API of our own dispatcher, as far as a task needs it: publish, look up, cancel, keys."""

import base64
import hashlib
import hmac
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

import asyncpg
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.body import read_body
from server.db import DATABASE_ERRORS, Pool
from server.dispatch.message import BadMessage, read_draft
from server.dispatch.messages import Messages
from server.errors import Problem
from server.settings import Settings

MESSAGE_BYTES_MAX = 1024 * 1024
HEADERS_MAX = 100
PUBLISH_PREFIX = b"/v2/publish/"


class ApiError(Exception):
    """What the API answers as `{"error": text}`."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def answer(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


class Api:
    """`routes` are to be served; every request but the health checks needs the token."""

    def __init__(self, settings: Settings, pool: Pool, messages: Messages, published: Callable[[], None]) -> None:
        self._token = settings.qstash_token or ""
        self._keys = settings.signing_keys
        self._pool = pool
        self._messages = messages
        self._published = published
        self.routes = [
            Route("/v2/publish/{destination:path}", self._answering(self.publish), methods=["POST"]),
            Route("/v2/messages/{id}", self._answering(self.message), methods=["GET"]),
            Route("/v2/messages/{id}", self._answering(self.cancel), methods=["DELETE"]),
            Route("/v2/keys", self._answering(self.keys), methods=["GET"]),
            Route("/healthz", self.alive, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
        ]

    def _answering(self, endpoint: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def guarded(request: Request) -> Response:
            try:
                self._authorize(request)
                response: Response = await endpoint(request)
            except (ApiError, BadMessage, Problem) as error:
                status = 400 if isinstance(error, BadMessage) else error.status
                return answer({"error": str(error)}, status)
            except DATABASE_ERRORS:
                return answer({"error": "the database cannot be reached"}, 500)
            return response

        return guarded

    def _authorize(self, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        given = given or request.query_params.get("qstash_token", "")
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            raise ApiError(401, "unauthorized")

    async def publish(self, request: Request) -> Response:
        """Store a message for the URL in the path, which stands there raw, with its own query."""
        if len(request.headers.raw) > HEADERS_MAX:
            raise ApiError(400, f"more than {HEADERS_MAX} headers")
        destination, options = _destination(request)
        body = await read_body(request, MESSAGE_BYTES_MAX)
        draft = read_draft(destination, [*request.headers.items(), *options], body)
        caller_ip = request.client.host if request.client else ""
        message_id, duplicate = await self._messages.publish(draft, caller_ip)
        self._published()
        if duplicate:
            return answer({"messageId": message_id, "url": destination, "deduplicated": True}, 202)
        return answer({"messageId": message_id, "url": destination})

    async def message(self, request: Request) -> Response:
        row = await self._messages.find(request.path_params["id"])
        if row is None:
            raise ApiError(404, "message not found")
        return answer(_shown(row))

    async def cancel(self, request: Request) -> Response:
        if not await self._messages.cancel(request.path_params["id"]):
            raise ApiError(404, "message not found")
        return answer({"cancelled": 1})

    async def keys(self, _: Request) -> Response:
        return answer({"current": self._keys[0], "next": self._keys[-1]})

    async def alive(self, _: Request) -> Response:
        return answer({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        try:
            await self._pool.fetchval("select 1", timeout=2)
        except DATABASE_ERRORS:
            return answer({"status": "unavailable", "postgres": "down"}, 503)
        return answer({"status": "ready", "postgres": "up"})


def _destination(request: Request) -> tuple[str, list[tuple[str, str]]]:
    """The destination as it was sent, and the options among the query parameters."""
    raw = bytes(request.scope["raw_path"])
    destination = raw[raw.index(PUBLISH_PREFIX) + len(PUBLISH_PREFIX) :].decode("ascii", "replace")
    # Some clients escape what stands in a path: a destination never begins like that by itself.
    if match := re.match(r"(https?)(?::|%3A)(?:/|%2F){2}", destination, re.IGNORECASE):
        destination = f"{match[1]}://{destination[match.end() :]}"
    options: list[tuple[str, str]] = []
    kept: list[str] = []
    for part in request.scope["query_string"].decode("latin-1").split("&"):
        name = part.partition("=")[0].lower()
        if name == "qstash_token":
            continue
        if name.startswith("upstash-"):
            options += parse_qsl(part, keep_blank_values=True)
        elif part:
            kept.append(part)
    return destination + (f"?{'&'.join(kept)}" if kept else ""), options


def _shown(row: asyncpg.Record) -> dict[str, Any]:
    redact = {field.lower() for field in row["redact"]}
    header = {
        name: [_redacted(v) if {"header", f"header[{name.lower()}]"} & redact else v for v in values]
        for name, values in msgspec.json.decode(row["header"]).items()
    }
    shown: dict[str, Any] = {
        "messageId": row["id"],
        "url": row["url"],
        "method": row["method"],
        "maxRetries": row["max_retries"],
        "notBefore": row["not_before_ms"],
        "createdAt": row["created_at_ms"],
        "header": header,
        "callback": row["callback"],
        "failureCallback": row["failure_callback"],
        "callerIP": row["caller_ip"],
        "retryDelayExpression": row["retry_delay"],
        "label": next(iter(row["labels"]), None),
        "labels": row["labels"],
    }
    body = bytes(row["body"])
    if "body" in redact:
        shown["body"] = _redacted(body.decode("utf-8", "replace"))
    elif body:
        try:
            shown["body"] = body.decode()
        except UnicodeDecodeError:
            shown["bodyBase64"] = base64.b64encode(body).decode()
    return {name: value for name, value in shown.items() if value or value == 0}


def _redacted(value: str) -> str:
    return "REDACTED:" + hashlib.sha256(value.encode()).hexdigest()
