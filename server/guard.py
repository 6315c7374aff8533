"""Around every request: its id, who may address us at all, problems instead of exceptions, headers, one log line.

Plain ASGI, because anything that wraps the response body breaks streams.
"""

import time
from collections.abc import Collection, Mapping

import structlog
from starlette.datastructures import Headers, MutableHeaders
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
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Vary": "Origin",  # whether another origin may read it is in the answer
}


class Guard:
    """Wraps the application. `image_origins` are where pictures may come from besides us and https."""

    def __init__(
        self, app: ASGIApp, admission: Admission, metrics: Metrics, image_origins: Collection[str] = ()
    ) -> None:
        self._app = app
        self._admission = admission
        self._metrics = metrics
        images = " ".join(["'self'", "data:", "https:", *sorted(image_origins)])
        self._headers = {
            **HEADERS,
            "Content-Security-Policy": (
                f"default-src 'none'; script-src 'self'; style-src 'self'; img-src {images}; connect-src 'self'; "
                "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
            ),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = request_id_of(headers)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(process="web", request_id=request_id)
        exchange = _Exchange(scope, send, request_id, self._headers)
        scope["app"] = self._app  # makes the router raise what it cannot answer, where it would send plain text
        try:
            self._admission.admit(scope["path"], headers)
            await self._app(scope, receive, exchange.send)
        except Exception as error:
            await exchange.fail(error, receive)
        finally:
            self._record(scope, exchange)

    def _record(self, scope: Scope, exchange: "_Exchange") -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = scope.get("method", "WS")
        method = method if method in ("GET", "HEAD", "POST", "DELETE", "WS") else "other"
        self._metrics.requests.labels(route, method, exchange.status).inc()
        say = log.debug if route in ("/healthz", "/readyz", "/metrics") else log.info
        say(
            "request",
            method=method,
            path=scope["path"][:PATH_CHARACTERS_LOGGED],
            status=exchange.status,
            ms=round((time.monotonic() - exchange.began) * 1000, 1),
        )


class _Exchange:
    """The response as it goes out: what has begun, and what to say when something goes wrong."""

    def __init__(self, scope: Scope, send: Send, request_id: str, headers: Mapping[str, str]) -> None:
        self._scope = scope
        self._send = send
        self._request_id = request_id
        self._headers = headers
        self.began = time.monotonic()
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in self._headers.items():
                headers.setdefault(name, value)
            headers[HEADER] = self._request_id
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
