"""Around every request: its id, who may address us at all, problems instead of exceptions, headers, one log line.

Plain ASGI, because anything that wraps the response body breaks streams.
"""

import time
from collections.abc import Collection, Iterable

import structlog
from prometheus_client import Counter
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import errors
from server.admission import Admission
from server.db import UNAVAILABLE
from server.errors import Problem, problem_response
from server.methods import allowed
from server.metrics import Metrics
from server.request_id import HEADER, request_id_of

log = structlog.get_logger()

PATH_CHARACTERS_LOGGED = 200
# Nobody is there to be answered; as nginx has it in its log.
GONE = 499
REQUEST_ID = HEADER.encode()
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}
METHODS = ("GET", "HEAD", "POST", "DELETE", "WS")
PROBES = ("/healthz", "/readyz", "/metrics")


class Guard:
    """Wraps the application. `image_origins` are where pictures may come from besides us and https.

    `shared`: what lies around it tells caches that an answer depends on the origin of the page that asked.
    """

    def __init__(
        self,
        app: ASGIApp,
        admission: Admission,
        metrics: Metrics,
        image_origins: Collection[str] = (),
        *,
        shared: bool = False,
    ) -> None:
        self._app = app
        self._admission = admission
        self._requests = metrics.requests
        self._counted: dict[tuple[str, str, int], Counter] = {}  # to look labels up costs more than to count
        images = " ".join(["'self'", "data:", "https:", *sorted(image_origins)])
        policy = (
            f"default-src 'none'; script-src 'self'; style-src 'self'; img-src {images}; connect-src 'self'; "
            "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        headers = HEADERS | {"content-security-policy": policy} | ({} if shared else {"vary": "Origin"})
        self._headers = _Headers(headers.items())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = _by_name(scope["headers"])
        request_id = request_id_of(headers)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(process="web", request_id=request_id)
        exchange = _Exchange(scope, send, request_id, self._headers)
        scope["app"] = self._app  # makes the router raise what it cannot answer, where it would send plain text
        try:
            self._admission.admit(scope["path"], headers)
            del headers  # a WebSocket may last for days
            await self._app(scope, receive, exchange.send)
        except Exception as error:
            await exchange.fail(error, receive)
        finally:
            self._record(scope, exchange)

    def _record(self, scope: Scope, exchange: "_Exchange") -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = scope.get("method", "WS")
        method = method if method in METHODS else "other"
        self._counter(route, method, exchange.status).inc()
        say = log.debug if route in PROBES else log.info
        say(
            "request",
            method=method,
            path=scope["path"][:PATH_CHARACTERS_LOGGED],
            status=exchange.status,
            ms=round((time.monotonic() - exchange.began) * 1000, 1),
        )

    def _counter(self, route: str, method: str, status: int) -> Counter:
        key = (route, method, status)
        counter = self._counted.get(key)
        if counter is None:
            counter = self._counted[key] = self._requests.labels(*key)
        return counter


def _by_name(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Of a name that is given twice the first counts, as everywhere."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed([*headers])}


class _Headers:
    """What every answer carries, where it does not say otherwise itself."""

    def __init__(self, headers: Iterable[tuple[str, str]]) -> None:
        self._pairs = [(name.encode(), value.encode()) for name, value in headers]
        self._names = frozenset(name for name, _ in self._pairs)

    def added_to(self, given: Iterable[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
        own = [*given]
        said = self._names.intersection([name for name, _ in own])
        added = [pair for pair in self._pairs if pair[0] not in said] if said else self._pairs
        return [*own, *added, (REQUEST_ID, request_id.encode())]


class _Exchange:
    """The response as it goes out: what has begun, and what to say when something goes wrong."""

    __slots__ = ("_headers", "_request_id", "_scope", "_send", "began", "status")

    def __init__(self, scope: Scope, send: Send, request_id: str, headers: _Headers) -> None:
        self._scope = scope
        self._send = send
        self._request_id = request_id
        self._headers = headers
        self.began = time.monotonic()
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            message["headers"] = self._headers.added_to(message.get("headers", ()), self._request_id)
        elif message["type"] == "websocket.accept":
            self.status = 101
        elif message["type"] == "websocket.close" and not self.status:
            self.status = 403
        await self._send(message)

    async def fail(self, error: Exception, receive: Receive) -> None:
        if isinstance(error, ClientDisconnect):
            self.status = self.status or GONE
            return
        problem = _problem(error, self._scope)
        if problem.status >= 500:
            log.error("request_failed", code=problem.code, exc_info=problem.code == "internal_error" and error)
        if self.status:
            if problem.code == "internal_error":
                raise error  # the response has begun: uvicorn cuts the connection, which says what is so
            return
        if self._scope["type"] == "websocket" and "websocket.http.response" not in self._scope.get("extensions", {}):
            await self.send({"type": "websocket.close", "code": 1008, "reason": problem.code})
            return
        await problem_response(problem, self._request_id)(self._scope, receive, self.send)


def _problem(error: Exception, scope: Scope) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        if error.status_code == 405:
            methods = allowed(scope["app"].routes, scope)
            return errors.MethodNotAllowed(f"This path takes {methods}", headers={"Allow": methods})
        if error.status_code == 404:
            return errors.NotFound()
        return errors.BadRequest(error.detail)
    if isinstance(error, UNAVAILABLE):
        return errors.Unavailable()
    return Problem()
