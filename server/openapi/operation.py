"""One operation of an API as it is described: what it takes, what it answers, and examples, which a test runs. Pure."""

import shlex
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias
from urllib.parse import quote, urlencode

import msgspec

from server.errors import Problem

JSON = "application/json"
IMAGES = "image/png, image/jpeg, image/webp"
ORIGIN = "http://localhost:8000"
Place: TypeAlias = Literal["query", "header", "path"]


class Parameter(msgspec.Struct, frozen=True):
    """`schema` is JSON Schema; an array in the query repeats its name."""

    name: str
    place: Place
    about: str
    schema: dict[str, Any]
    required: bool = False


class Answer(msgspec.Struct, frozen=True):
    """`kind` is the type that is encoded, a media type, or None for no body; `headers` are names in HEADERS."""

    about: str
    kind: Any = None
    headers: tuple[str, ...] = ()


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A request and its answer, under one name wherever a part of them stands in the document.

    `body` and `answer` are what JSON encodes, or the text of another media type; `script` stands in for the line of
    curl where curl cannot do it.
    """

    name: str
    about: str
    status: int
    path: Mapping[str, str] = {}
    query: Mapping[str, str | list[str]] = {}
    headers: Mapping[str, str] = {}
    body: Any = None
    answer: Any = None
    script: str | None = None


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """`body` is the type that the request's JSON is read as, or a media type; `problems` are what it may answer.

    Of the problems that any route may answer with, `never` are those that this one does not.
    """

    path: str
    method: str
    id: str
    tag: str
    summary: str
    about: str = ""
    parameters: tuple[Parameter, ...] = ()
    body: Any = None
    body_required: bool = True
    body_bytes_max: int | None = None
    never: tuple[type[Problem], ...] = ()
    answers: Mapping[int, Answer]
    problems: tuple[type[Problem], ...] = ()
    security: str | None = None
    examples: tuple[Example, ...] = ()
    more: Mapping[str, Any] = {}


def query(name: str, about: str, *, required: bool = False, **schema: Any) -> Parameter:
    """Text in the query, unless `schema` says more."""
    return Parameter(name, "query", about, {"type": "string", **schema}, required)


def header(name: str, about: str) -> Parameter:
    return Parameter(name, "header", about, {"type": "string"})


def get(path: str, name: str, tag: str, summary: str, kind: Any, about: str, answer: Any = None) -> Operation:
    example = Example(name="get", about=summary, status=200, answer=answer)
    return Operation(
        path=path,
        method="get",
        id=name,
        tag=tag,
        summary=summary,
        answers={200: Answer(about, kind)},
        examples=(example,),
    )


def curl(operation: Operation, example: Example, origin: str = ORIGIN) -> str:
    """The example as a line of curl, wrapped for people."""
    path = operation.path
    for name, value in example.path.items():
        path = path.replace(f"{{{name}}}", value)
    query = urlencode(example.query, doseq=True, quote_via=quote)
    words = ["curl"]
    if any(answer.kind == "text/event-stream" for answer in operation.answers.values()):
        words.append("-N")
    if operation.method != "get" and not (operation.method == "post" and example.body is not None):
        words.append(f"-X {operation.method.upper()}")
    words.append(shlex.quote(origin + path + (f"?{query}" if query else "")))
    lines = [" ".join(words), *(f"-H {shlex.quote(f'{name}: {value}')}" for name, value in example.headers.items())]
    if example.body is not None:
        text = example.body if isinstance(example.body, str) else msgspec.json.encode(example.body).decode()
        if isinstance(operation.body, type):
            lines.append(f"-H {shlex.quote(f'Content-Type: {JSON}')}")
        lines.append(f"-d {shlex.quote(text)}")
    return " \\\n  ".join(lines)
