"""Starlette's router, with a look-up in front of it for paths without parameters, which most requests are for.

What a look-up finds was found by the router's own matching, once, when the routes were told: there is no second truth.
Everything else (parameters, mounts, 404, 405) goes the router's own way, from the first route to the last.
"""

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import TypeAlias

from starlette.routing import BaseRoute, Match, Route, Router, WebSocketRoute
from starlette.types import Receive, Scope, Send

_Asked: TypeAlias = tuple[str, str | None, str]  # type, method (None: a WebSocket), path
_Exact: TypeAlias = Route | WebSocketRoute


class Routes(Router):
    """`tell()` it the routes before it is asked."""

    _exact: Mapping[_Asked, _Exact] = MappingProxyType({})

    def tell(self, routes: Collection[BaseRoute]) -> None:
        self.routes.extend(routes)
        self._exact = {asked: route for asked in _exact(routes) if (route := self._first(asked)) is not None}

    def _first(self, asked: _Asked) -> _Exact | None:
        """The route that the router would take; none where one with parameters, or a mount, comes before."""
        kind, method, path = asked
        scope = {"type": kind, "method": method, "path": path}
        first = next(route for route in self.routes if route.matches(scope)[0] is Match.FULL)
        return first if isinstance(first, _Exact) and not first.param_convertors else None

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._exact.get((scope["type"], scope.get("method"), scope.get("path", "")))
        if route is None or scope.get("root_path"):
            await super().app(scope, receive, send)
            return
        scope["router"] = self
        scope["route"] = route
        scope["endpoint"] = route.endpoint
        scope["path_params"] = {}
        await route.handle(scope, receive, send)


def _exact(routes: Collection[BaseRoute]) -> Iterator[_Asked]:
    for route in routes:
        if isinstance(route, Route) and not route.param_convertors:
            for method in route.methods or ():
                yield "http", method, route.path
        elif isinstance(route, WebSocketRoute) and not route.param_convertors:
            yield "websocket", None, route.path
