"""Makes an OpenAPI 3.1 document from operations and the very types that validate and encode. Pure.

A part of an example stands where OpenAPI wants it (parameter, body, answer), under the example's name; the whole of
it, as a line of curl, in `x-codeSamples`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import msgspec

from server.errors import Problem, problem_body
from server.openapi.operation import JSON, Answer, Example, Operation, Parameter, curl
from server.version import VERSION

PROBLEM = "application/problem+json"
SCHEMAS = "#/components/schemas/"
_HEADER_PLACE = "#/components/headers/"
REQUEST_ID = "0hV3gkqYx1aZ"
HEADERS: dict[str, tuple[str, dict[str, Any]]] = {
    "X-Request-Id": ("The request's id, as it is in the log; yours, if it is 1 to 64 of A-Z a-z 0-9 _ -.", {}),
    "Location": ("Where the task can be asked for.", {"format": "uri-reference"}),
    "Retry-After": ("In how many seconds it is worth asking again.", {"type": "integer", "minimum": 0}),
    "ETag": ("Which answer this is, for If-None-Match.", {"pattern": '^(W/)?"[^"]+"$'}),
    "Allow": ("The methods there are.", {}),
    "Upstash-NonRetryable-Error": ("Tells QStash that no retry will help.", {"enum": ["true"]}),
}


class ProblemDetails(msgspec.Struct, rename="camel", omit_defaults=True):
    """RFC 9457. `code` is stable and for programs, `detail` a sentence for people, `requestId` is in the log."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str | None = None


class Api(msgspec.Struct, frozen=True, kw_only=True):
    """What is described. `everywhere`: the problems any route may answer with; `read`, `sent`: types besides bodies.

    `members` has a sentence for members of types, as {"Type": {"member": "…"}}; `refine` more of JSON Schema for them,
    where it stands nowhere in the type (`""`: for the type itself).
    """

    title: str
    about: str
    origin: str
    tags: Mapping[str, str]
    operations: Sequence[Operation]
    headers: Sequence[str] = ()
    security: Mapping[str, Mapping[str, Any]] = {}
    everywhere: Sequence[type[Problem]] = ()
    problems: Sequence[type[Problem]] = ()
    read: Sequence[type[msgspec.Struct]] = ()
    sent: Sequence[type[msgspec.Struct]] = ()
    members: Mapping[str, Mapping[str, str]] = {}
    refine: Mapping[str, Mapping[str, Mapping[str, Any]]] = {}
    more_schemas: Mapping[str, Any] = {}
    webhooks: Mapping[str, Operation] = {}


def document(api: Api) -> dict[str, Any]:
    """The description as a JSON object."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in api.operations:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, api)
    hooks = {name: {hook.method: _operation(hook, api, outgoing=True)} for name, hook in api.webhooks.items()}
    responses = {problem.code: _problem([problem], api) for problem in api.everywhere}
    text = msgspec.json.encode([paths, hooks, responses]).decode()
    components: dict[str, Any] = {
        "schemas": _schemas(api),
        "headers": {name: _header(name) for name in HEADERS if f'"{_HEADER_PLACE}{name}"' in text},
        "responses": responses,
        "examples": {p.code: {"summary": p.title, "value": problem_body(p(), REQUEST_ID)} for p in api.problems},
        "securitySchemes": dict(api.security),
    }
    codes = {p.code: {"status": p.status, "title": p.title} for p in api.problems}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": api.title,
            "version": VERSION,
            "description": api.about,
            "license": {"name": "MIT", "identifier": "MIT"},
            **({"x-problem-codes": codes} if codes else {}),
        },
        "servers": [{"url": "/", "description": "The server that this document comes from."}],
        "security": [],
        "tags": [{"name": name, "description": about} for name, about in api.tags.items()],
        "paths": paths,
        **({"webhooks": hooks} if hooks else {}),
        "components": {name: part for name, part in components.items() if part},
    }


def reference(kind: type) -> dict[str, str]:
    return {"$ref": SCHEMAS + kind.__name__}


def _operation(operation: Operation, api: Api, *, outgoing: bool = False) -> dict[str, Any]:
    examples = operation.examples
    responses = {str(status): _answer(status, answer, operation, api) for status, answer in operation.answers.items()}
    by_status: dict[int, list[type[Problem]]] = {}
    for problem in operation.problems:
        by_status.setdefault(problem.status, []).append(problem)
    for problem in () if outgoing else [p for p in api.everywhere if p not in operation.never]:
        if problem.status in by_status:
            by_status[problem.status].append(problem)
        else:
            responses[str(problem.status)] = {"$ref": f"#/components/responses/{problem.code}"}
    for status, problems in by_status.items():
        responses[str(status)] = _problem(problems, api)
    described: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.about,
        "parameters": [_parameter(parameter, examples) for parameter in operation.parameters],
        "requestBody": _request_body(operation) if operation.body is not None else None,
        "responses": dict(sorted(responses.items())),
        "security": [{operation.security: []}] if operation.security else None,
        "x-codeSamples": [_sample(operation, example, api.origin) for example in ([] if outgoing else examples)],
        **operation.more,
    }
    return {name: part for name, part in described.items() if part}


def _sample(operation: Operation, example: Example, origin: str) -> dict[str, Any]:
    source = example.script or curl(operation, example, origin)
    language = "JavaScript" if example.script else "Shell"
    return {
        "lang": language,
        "label": example.about,
        "source": source,
        "x-example": example.name,
        "x-status": example.status,
    }


def _parameter(parameter: Parameter, examples: Sequence[Example]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for example in examples:
        given = {"query": example.query, "path": example.path, "header": example.headers}[parameter.place]
        if parameter.name in given:
            value: Any = given[parameter.name]
            number = parameter.schema.get("type") == "integer"
            many = parameter.schema.get("type") == "array" and isinstance(value, str)
            values[example.name] = {"value": int(value) if number else [value] if many else value}
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.required,
        "description": parameter.about,
        "schema": parameter.schema,
        **({"examples": values} if values else {}),
    }


def _request_body(operation: Operation) -> dict[str, Any]:
    is_type = isinstance(operation.body, type)
    found = [e for e in operation.examples if e.body is not None]
    examples = {e.name: {"summary": e.about, "value": msgspec.to_builtins(e.body)} for e in found}
    content = {"schema": reference(operation.body) if is_type else {}, **({"examples": examples} if examples else {})}
    limit = operation.body_bytes_max
    about = f"At most {limit:,} bytes." if limit else ""
    return {
        "description": about,
        "required": operation.body_required and is_type,
        "content": {JSON if is_type else operation.body: content},
        **({"x-bytes-max": limit} if limit else {}),
    }


def _answer(status: int, answer: Answer, operation: Operation, api: Api) -> dict[str, Any]:
    described: dict[str, Any] = {"description": answer.about}
    names = [*api.headers, *answer.headers]
    if names:
        described["headers"] = {name: {"$ref": _HEADER_PLACE + name} for name in names}
    if answer.kind is None:
        return described
    found = [e for e in operation.examples if e.status == status and e.answer is not None]
    examples = {e.name: {"summary": e.about, "value": msgspec.to_builtins(e.answer)} for e in found}
    is_type = isinstance(answer.kind, type)
    binary = not is_type and "image/" in answer.kind
    # A picture has no schema in 3.1: JSON Schema knows no bytes.
    plain = {"type": "object" if answer.kind == JSON else "string"}
    content: dict[str, Any] = {} if binary else {"schema": reference(answer.kind) if is_type else plain}
    if examples:
        content["examples"] = examples
    described["content"] = dict.fromkeys([JSON] if is_type else answer.kind.split(", "), content)
    return described


def _problem(problems: Sequence[type[Problem]], api: Api) -> dict[str, Any]:
    """The answer of one status; which codes it may have is part of its schema."""
    kinds = sorted({p.code: p for p in problems}.values(), key=lambda p: p.code)
    made = [kind() for kind in kinds]
    schema = {
        **reference(ProblemDetails),
        "properties": {"status": {"const": kinds[0].status}, "code": {"enum": [kind.code for kind in kinds]}},
    }
    examples = {kind.code: {"$ref": f"#/components/examples/{kind.code}"} for kind in kinds}
    names = [*api.headers, *sorted({name for problem in made for name in problem.headers if name in HEADERS})]
    return {
        "description": "; ".join(f"`{kind.code}`: {kind.title}" for kind in kinds) + ".",
        "headers": {name: {"$ref": _HEADER_PLACE + name} for name in names},
        "content": {PROBLEM: {"schema": schema, "examples": examples}},
    }


def _header(name: str) -> dict[str, Any]:
    about, schema = HEADERS[name]
    return {"description": about, "schema": {"type": "string", **schema}}


def _is_struct(kind: Any) -> TypeGuard[type[msgspec.Struct]]:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _schemas(api: Api) -> dict[str, Any]:
    hooks = api.webhooks.values()
    answers = [a.kind for o in [*api.operations, *hooks] for a in o.answers.values() if _is_struct(a.kind)]
    bodies = [o.body for o in [*api.operations, *hooks] if _is_struct(o.body)]
    types = [*bodies, *answers, *api.read, *api.sent, *([ProblemDetails] if api.problems else [])]
    _, schemas = msgspec.json.schema_components(dict.fromkeys(types), ref_template=SCHEMAS + "{name}")
    for kind in {*answers, *api.sent} - {*bodies, *api.read}:
        # What we encode ourselves has all its members, whether or not they have a default.
        if not kind.__struct_config__.omit_defaults:
            schemas[kind.__name__]["required"] = list(schemas[kind.__name__]["properties"])
    for name, schema in schemas.items():
        schema["description"] = " ".join(schema.get("description", "").split())
        schema.update(api.refine.get(name, {}).get("", {}))
        for member, part in schema.get("properties", {}).items():
            if member in api.members.get(name, {}):
                part["description"] = api.members[name][member]
            part.update(api.refine.get(name, {}).get(member, {}))
    return {**schemas, **api.more_schemas}
