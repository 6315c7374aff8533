"""Around every request: its id, who may address us at all, problems instead of exceptions, headers, one log line.

Plain ASGI, because anything that wraps the response body breaks streams. Any web site can make a visitor's
browser send requests to a loopback port: so without sign-in only our own host names and our own origin count,
and behind a tunnel only the routes that bring their own proof.
"""

import time
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import errors
from server.db import UNAVAILABLE
from server.errors import Problem, problem_response
from server.methods import allowed
from server.metrics import Metrics
from server.peer import FORWARDED_ADDRESSES, is_local_address, is_local_host
from server.request_id import HEADER, request_id_of

log = structlog.get_logger()

PATH_CHARACTERS_LOGGED = 200
# They carry a signature or a token of their own, so they may be called from anywhere.
SELF_PROVING = ("/api/generate/callback", "/api/generate/progress", "/api/generate/webhook/")
# Their names cannot be guessed, and PUBLIC_URL is said to show them.
PICTURES = "/results/"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


class Guard:
    """Wraps the application. `told_urls` are the addresses that QStash and generators were told, such as a tunnel's.

    `image_origins` are where pictures may come from besides us and https.
    """

    def __init__(
        self, app: ASGIApp, told_urls: Collection[str], metrics: Metrics, image_origins: Collection[str] = ()
    ) -> None:
        self._app = app
        self._told_hosts = frozenset(urlsplit(url).netloc.lower() for url in told_urls)
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
            self._admit(scope, headers)
            await self._app(scope, receive, exchange.send)
        except Exception as error:
            await exchange.fail(error, receive)
        finally:
            self._record(scope, exchange)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "").lower()
        path = scope["path"]
        if path.startswith(SELF_PROVING):
            if host in self._told_hosts or is_local_host(host):
                return
            raise errors.ForeignHost
        if path.startswith(PICTURES) and host in self._told_hosts and not is_local_host(host):
            return
        # The development server of an app on this machine may stand in front; no page can set this header for us.
        front = headers.get("x-forwarded-host", host).lower()
        if not is_local_host(host) or not is_local_host(front) or not _comes_from_here(headers):
            raise errors.ForeignHost("Without sign-in this server answers on its own machine, to localhost only")
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"http://{front}"):
            raise errors.ForeignOrigin
        if path.startswith("/api/") and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise errors.ForeignOrigin

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
        if message["type"] == "http.response.start":
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
        problem = _problem(error, self._scope)
        if problem.status >= 500:
            log.error("request_failed", code=problem.code, exc_info=problem.code == "internal_error" and error)
        if self.status:
            if problem.code == "internal_error":
                raise error  # the response has begun: uvicorn cuts the connection, which says what is so
            return
        if self._scope["type"] == "websocket":
            await self.send({"type": "websocket.close", "code": 1008, "reason": problem.code})
            return
        await problem_response(problem, self._request_id)(self._scope, receive, self.send)


def _comes_from_here(headers: Headers) -> bool:
    """Whether every address that a proxy says it asks for is of this machine."""
    said = [address for name in FORWARDED_ADDRESSES for address in headers.get(name, "").split(",") if address.strip()]
    return all(map(is_local_address, said))


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
