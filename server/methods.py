"""Which methods a path has: several routes may share it, and a 405 has to name all of theirs (RFC 9110, 15.5.6)."""

from collections.abc import Iterable

from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope


def allowed(routes: Iterable[BaseRoute], scope: Scope) -> str:
    """The value of the header Allow for the path of this request."""
    found = [route for route in routes if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE]
    return ", ".join(sorted({method for route in found for method in route.methods or ()}))
