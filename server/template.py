"""The body of a generator's request as an operator writes it: JSON with placeholders in its strings. Pure.

`{prompt}` and `{params.seed}` are replaced when a job is sent. A string that is nothing but a placeholder becomes its
value, whatever type that has, and is left out where there is none; in a longer string the value stands as text. `{{`
and `}}` are braces that are meant. Keys are never replaced: what a user sends cannot become one.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

PLACEHOLDERS = ("prompt", "taskId", "attempt", "webhookUrl", "progressUrl", "progressToken")
DEPTH_MAX = 60

_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_WHOLE = re.compile(r"\{([^{}]*)\}")
_PARAM = re.compile(r"params\.[A-Za-z0-9_-]{1,64}", re.ASCII)
_ABSENT = object()


class BadTemplate(ValueError):
    """The template cannot be used; the message says why, without showing it."""


class Template(msgspec.Struct, frozen=True):
    """A template that was checked; `names` are the placeholders in it, such as `prompt` and `params.seed`."""

    document: dict[str, Any]
    names: frozenset[str]


def parse_template(text: str) -> Template:
    """The template in a JSON text. Raises BadTemplate."""
    try:
        document = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BadTemplate(f"is not JSON: {error}") from None
    return read_template(document)


def read_template(document: Any) -> Template:
    """The template in a JSON document. Raises BadTemplate."""
    if not isinstance(document, dict):
        raise BadTemplate('must be a JSON object such as {"prompt": "{prompt}"}')
    names = {name for text in _texts(document, DEPTH_MAX) for name in placeholders(text)}
    return Template(document, frozenset(names))


def placeholders(text: str) -> set[str]:
    """The names of the placeholders in one string. Raises BadTemplate for one that does not exist."""
    found = set()
    for part in _PART.finditer(text):
        if part[0] in ("{{", "}}"):
            continue
        name = part[1]
        if name is None:
            raise BadTemplate("has a single brace; one that is meant is written twice, {{ or }}")
        if name not in PLACEHOLDERS and not _PARAM.fullmatch(name):
            known = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
            raise BadTemplate(f"has no placeholder {{{name[:40]}}}; there are {known} and {{params.NAME}}")
        found.add(name)
    return found


def fill(template: Template, values: Mapping[str, Any]) -> dict[str, Any]:
    """The body; `values` by placeholder, without braces."""
    filled: dict[str, Any] = _fill(template.document, values)
    return filled


def fill_text(text: str, values: Mapping[str, Any]) -> str:
    """One string with the values in it as text; nothing where there is none."""

    def replace(part: re.Match[str]) -> str:
        return part[0][0] if part[1] is None else _as_text(values.get(part[1]))

    return _PART.sub(replace, text)


def _fill(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        whole = _WHOLE.fullmatch(value)
        return values.get(whole[1], _ABSENT) if whole else fill_text(value, values)
    if isinstance(value, dict):
        filled = {key: _fill(inner, values) for key, inner in value.items()}
        return {key: inner for key, inner in filled.items() if inner is not _ABSENT}
    if isinstance(value, list):
        return [inner for inner in (_fill(item, values) for item in value) if inner is not _ABSENT]
    return value


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _texts(value: Any, depth: int) -> Iterator[str]:
    if depth == 0:
        raise BadTemplate(f"is nested deeper than {DEPTH_MAX}")
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner, depth - 1)
