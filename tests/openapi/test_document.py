"""Holds the descriptions to the routes that there are, to their own examples and to every code."""

import inspect
import re
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute

from server import app
from server.dispatch.api import Api
from server.errors import all_problems
from server.openapi import dispatcher, dispatcher_members, web
from server.openapi.members import MEMBERS
from server.push.ws import Message
from server.settings import Settings
from server.tasks.state import STATUSES
from tests.openapi.description import DISPATCHER, WEB, Description, Operation

pytestmark = pytest.mark.pure

BOTH = pytest.mark.parametrize("description", [WEB, DISPATCHER], ids=["web", "dispatcher"])
OPERATIONS = [operation for description in (WEB, DISPATCHER) for operation in description.operations]
EACH = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.id)


def served(routes: list[BaseRoute]) -> Iterator[tuple[str, str]]:
    """(method, path) of each route; their endpoints are never called here."""
    for route in routes:
        if isinstance(route, WebSocketRoute):
            yield "get", route.path
        elif isinstance(route, Route):
            for method in (route.methods or set()) - {"HEAD"}:
                yield method.lower(), re.sub(r":path\}", "}", route.path)
        else:
            assert isinstance(route, Mount)
            assert route.path == "/static", "files: no operations of the API"


def test_each_route_is_described_and_nothing_else() -> None:
    endpoints = {name: Mock() for name in inspect.signature(app.routes).parameters if name != "settings"}
    described = {(operation.method, operation.path) for operation in WEB.operations}
    assert described == set(served(app.routes(Settings(), **endpoints))), (
        "add the route to OPERATIONS in server/openapi/, or take it out"
    )


def test_each_route_of_the_dispatcher_is_described_and_nothing_else() -> None:
    routes = Api(Settings(qstash_current_signing_key="k"), Mock(), Mock(), Mock(), Mock()).routes
    described = {(operation.method, operation.path) for operation in DISPATCHER.operations}
    assert described == {*served(list(routes)), ("get", "/openapi.json")}


@BOTH
def test_a_client_can_be_generated_from_it(description: Description) -> None:
    ids = [operation.id for operation in description.operations]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[a-z]+[A-Z][A-Za-z]+", name) for name in ids)
    tags = {tag["name"] for tag in description.document["tags"]}
    assert {tag for operation in description.operations for tag in operation.body["tags"]} == tags
    assert description.document["security"] == [], "none, where an operation does not say so"
    schemes = description.document["components"]["securitySchemes"]
    assert {name for o in description.operations for way in o.body.get("security", []) for name in way} == set(schemes)
    for operation in description.operations:
        assert operation.body["summary"]
        named = {(p["in"], p["name"]) for p in operation.parameters}
        assert not named & {("header", name) for name in ("Authorization", "Accept", "Content-Type")}, (
            "OpenAPI drops them"
        )
        assert {name for place, name in named if place == "path"} == set(re.findall(r"\{(\w+)\}", operation.path))


@BOTH
def test_every_type_and_member_is_explained(description: Description) -> None:
    for name, schema in description.schemas.items():
        assert schema["description"], name
        for member, part in schema.get("properties", {}).items():
            assert part.get("description"), f"say in members.py what {name}.{member} means"


@pytest.mark.parametrize("members", [MEMBERS, dispatcher_members.MEMBERS], ids=["web", "dispatcher"])
def test_nothing_is_explained_that_there_is_not(members: dict[str, dict[str, str]]) -> None:
    schemas = (WEB if members is MEMBERS else DISPATCHER).schemas
    assert {(n, m) for n, part in members.items() for m in part} <= {
        (n, m) for n, schema in schemas.items() for m in schema.get("properties", {})
    }


@EACH
def test_every_example_is_what_the_description_says(operation: Operation) -> None:
    if (operation.method, operation.path) in (("get", "/metrics"), ("get", "/openapi.json")):
        return  # their answers are too long to be shown
    found = 0
    for part, schema, value in operation.examples():
        problems = operation.description.problems(schema, value)
        assert not problems, f"{part}: {problems}"
        found += 1
    samples = operation.body["x-codeSamples"]
    assert samples
    bodied = any("content" in response for status, response in operation.responses.items() if status[0] == "2")
    pictures = {"/results/{name}", "/", "/dashboard", "/docs"}
    assert found or not bodied or operation.path in pictures


@EACH
def test_an_example_has_one_name_wherever_its_parts_stand(operation: Operation) -> None:
    names = {sample["x-example"] for sample in operation.body["x-codeSamples"]}
    assert len(names) == len(operation.body["x-codeSamples"])
    for part in [*operation.parameters, *operation.body.get("requestBody", {}).get("content", {}).values()]:
        assert set(part.get("examples", {})) <= names
    for sample in operation.body["x-codeSamples"]:
        assert str(sample["x-status"]) in operation.responses


def test_every_problem_code_is_listed_with_its_status() -> None:
    listed = WEB.document["info"]["x-problem-codes"]
    assert listed == {kind.code: {"status": kind.status, "title": kind.title} for kind in all_problems()}
    assert set(WEB.document["components"]["examples"]) == set(listed)


def test_problems_are_described_where_they_happen() -> None:
    create = WEB.operation("createTask")
    assert create.codes(400) == {"invalid_body", "invalid_prompt", "unknown_generator"}
    assert "`invalid_prompt`" in create.responses["400"]["description"]
    assert create.codes(503) == {"unavailable"}
    assert "Retry-After" in create.responses["503"]["headers"]
    assert create.codes(403) == {"foreign_origin"}
    assert "403" not in WEB.operation("takeCallback").responses, "it may come from anywhere"
    problem = create.responses["400"]["content"]["application/problem+json"]["schema"]
    assert WEB.problems(problem, {"type": "about:blank", "title": "t", "status": 400, "detail": "d", "code": "x"})


def test_the_snapshot_is_described_as_it_is_encoded() -> None:
    snapshot = WEB.schemas["Snapshot"]
    assert set(snapshot["properties"]["status"]["enum"]) == set(STATUSES)
    assert set(snapshot["required"]) == set(snapshot["properties"]), "all of it, always"
    assert snapshot["properties"]["createdAt"]["format"] == "date-time"
    assert {"type": "null"} in snapshot["properties"]["result"]["anyOf"]


def test_limits_are_those_that_are_checked() -> None:
    prompt = WEB.schemas["Generate"]["properties"]["prompt"]
    assert (prompt["minLength"], prompt["maxLength"]) == (1, 32_000)
    limits = {o.id: o.body["requestBody"]["x-bytes-max"] for o in WEB.operations if "requestBody" in o.body}
    assert limits["createTask"] == 65_536
    assert limits["takeCallback"] == 32 * 1024 * 1024


def test_messages_of_the_socket_are_those_that_are_read() -> None:
    requests = WEB.schemas["SocketRequest"]
    for text in (
        b'{"type":"ping"}',
        b'{"type":"subscribe","taskIds":["a"],"after":{"a":1}}',
        b'{"type":"unsubscribe"}',
    ):
        msgspec.json.decode(text, type=Message)
        assert WEB.problems(requests, msgspec.json.decode(text)) == []
    for text in (b'{"type":"subscribe","taskIds":"a"}', b'{"type":"hello"}', b"{}"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(text, type=Message)
        assert WEB.problems(requests, msgspec.json.decode(text))


@pytest.mark.parametrize("part", [web, dispatcher], ids=["web", "dispatcher"])
def test_the_answer_of_the_route_is_this_document(part: Any) -> None:
    coroutine = part.answer(Mock())
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    response = stop.value.value
    assert response.headers["content-type"] == "application/json"
    assert msgspec.json.decode(response.body) == msgspec.json.decode(msgspec.json.encode(part.document()))
