"""The look-up finds what Starlette's router would: for each route, method and path, and for what is none."""

import inspect
import itertools
from typing import Any
from unittest.mock import Mock

import pytest
from starlette.routing import BaseRoute, Mount, Route, Router, WebSocketRoute

from server import app
from server.routing import Routes
from server.settings import Settings
from tests.push.world import finish

pytestmark = pytest.mark.pure

METHODS = ("GET", "HEAD", "POST", "DELETE", "PUT", "OPTIONS", "get")


def ours() -> list[BaseRoute]:
    endpoints = {name: Mock() for name in inspect.signature(app.routes).parameters if name != "settings"}
    return app.routes(Settings(), **endpoints)


def awkward() -> list[BaseRoute]:
    """What comes first counts: parameters and mounts before a path of their own, and two of one path."""
    return [
        Route("/a/{name}", Mock(), methods=["GET"]),
        Route("/a/b", Mock(), methods=["GET"]),
        Route("/a/b", Mock(), methods=["POST"]),
        Route("/a/b", Mock(), methods=["POST", "DELETE"]),
        Mount("/m", Mock()),
        Route("/m/x", Mock(), methods=["GET"]),
        WebSocketRoute("/a/b", Mock()),
        Route("/any", Mock()),
        Route("/a/b/", Mock(), methods=["GET"]),
    ]


class Handled(Exception):
    """By which route, and what it was told of the request."""


def outcome(router: Router, scope: dict[str, Any]) -> Any:
    told = {**scope, "app": router}  # as the guard has it
    try:
        finish(router(told, Mock(), Mock()))
    except Exception as error:
        kept = {name: value for name, value in told.items() if name not in ("app", "router")}
        return type(error), error.args, getattr(error, "status_code", 0), kept
    raise AssertionError("nobody handled it")


@pytest.mark.parametrize("routes", [ours(), awkward()], ids=["ours", "awkward"])
def test_it_finds_what_the_router_finds(routes: list[BaseRoute], monkeypatch: pytest.MonkeyPatch) -> None:
    async def handle(self: BaseRoute, *_: Any) -> None:
        raise Handled(self)

    for kind in (Route, Mount, WebSocketRoute):
        monkeypatch.setattr(kind, "handle", handle)
    plain, quick = Router(routes, redirect_slashes=False), Routes(redirect_slashes=False)
    quick.tell(routes)
    known = {getattr(route, "path", "").replace("{name}", "x") for route in routes}
    paths = {*known, *(path + "/" for path in known), *(path.rstrip("/") for path in known), "", "//", "/nothing"}
    for path, root in itertools.product(sorted(paths), ("", "/base")):
        common = {"path": root + path, "root_path": root}
        asked = [{"type": "http", "method": method, **common} for method in METHODS] + [{"type": "websocket", **common}]
        for scope in asked:
            if scope["type"] == "websocket" and not any(route.matches(scope)[0].value for route in routes):
                continue  # answered, not raised
            assert outcome(quick, scope) == outcome(plain, scope), scope


def test_most_routes_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be the router again."""
    quick = Routes(redirect_slashes=False)
    routes = ours()
    quick.tell(routes)
    asked: list[BaseRoute] = []
    monkeypatch.setattr(Route, "matches", lambda self, _: asked.append(self))

    async def handle(self: BaseRoute, *_: Any) -> None:
        raise Handled(self)

    monkeypatch.setattr(Route, "handle", handle)
    for route in routes:
        if isinstance(route, Route) and "{" not in route.path:
            found = outcome(quick, {"type": "http", "method": next(iter(route.methods or ())), "path": route.path})
            assert found[0] is Handled
            assert found[1] == (route,)
    assert not asked
