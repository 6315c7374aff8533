"""Holds the description of the API to the routes that there are, to OpenAPI 3.1, and to every code that there is."""

import inspect
import re
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
from starlette.routing import Mount, Route, WebSocketRoute

from server import app, openapi
from server.errors import all_problems
from server.settings import Settings
from server.tasks.state import STATUSES

pytestmark = pytest.mark.pure

# For people, and the description itself.
UNDESCRIBED = {"/", "/dashboard", "/docs", "/openapi.json"}
METHODS = {"get", "post", "put", "patch", "delete"}
DOCUMENT: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(openapi.document()))


def served() -> Iterator[tuple[str, str]]:
    """(path, method) of each route; their endpoints are never called here."""
    endpoints = {name: Mock() for name in inspect.signature(app.routes).parameters if name != "settings"}
    for route in app.routes(Settings(), **endpoints):
        if isinstance(route, WebSocketRoute):
            yield route.path, "get"
        elif isinstance(route, Route):
            for method in (route.methods or set()) - {"HEAD"}:
                yield route.path, method.lower()
        else:
            assert isinstance(route, Mount)


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_each_route_is_described_and_nothing_else() -> None:
    described = {(path, method) for path, method, _ in operations()}
    assert described == {(path, method) for path, method in served() if path not in UNDESCRIBED}, (
        "add the route to OPERATIONS in server/openapi.py, or take it out"
    )


def test_it_has_the_form_of_openapi() -> None:
    assert re.fullmatch(r"3\.1\.\d+", DOCUMENT["openapi"])
    assert DOCUMENT["info"]["title"]
    assert DOCUMENT["info"]["version"]
    for path, method, operation in operations():
        assert path.startswith("/")
        assert method in METHODS
        assert operation["summary"], path
        assert operation["responses"], path
        for status, response in operation["responses"].items():
            assert re.fullmatch(r"[1-5]\d\d", status)
            assert response["description"], f"{path} {status}"
        for parameter in operation["parameters"]:
            assert parameter["in"] in ("query", "header", "path")
            assert parameter["schema"]["type"]
        names = [(parameter["in"], parameter["name"]) for parameter in operation["parameters"]]
        assert len(names) == len(set(names)), path
        in_path = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"}
        assert in_path == set(re.findall(r"\{(\w+)\}", path))
        assert all(parameter["required"] for parameter in operation["parameters"] if parameter["in"] == "path")


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"]
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from references(inner)


def test_every_reference_leads_somewhere() -> None:
    found = set(references(DOCUMENT))
    assert "#/components/schemas/Snapshot" in found
    assert found <= {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}


def test_every_problem_code_is_listed_with_its_status() -> None:
    listed = DOCUMENT["info"]["x-problem-codes"]
    assert listed == {kind.code: {"status": kind.status, "title": kind.title} for kind in all_problems()}


def test_problems_are_described_where_they_happen() -> None:
    refusal = DOCUMENT["paths"]["/api/generate"]["post"]["responses"]["400"]
    assert "`invalid_prompt`" in refusal["description"]
    assert "`invalid_body`" in refusal["description"]
    assert list(refusal["content"]) == ["application/problem+json"]


def test_the_snapshot_is_described_as_it_is_encoded() -> None:
    snapshot = DOCUMENT["components"]["schemas"]["Snapshot"]
    assert {"taskId", "statusVersion", "errorCode", "pollAfterMs", "createdAt"} <= set(snapshot["properties"])
    assert set(snapshot["properties"]["status"]["enum"]) == set(STATUSES)


def test_the_answer_of_the_route_is_this_document() -> None:
    coroutine = openapi.answer(Mock())
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    response = stop.value.value
    assert response.headers["content-type"] == "application/json"
    assert msgspec.json.decode(response.body) == DOCUMENT
