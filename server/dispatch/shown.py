"""Messages, dead letters and events as the API shows them. Pure.

What is not set is left out, what is private is hashed.
"""

import base64
import hashlib
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import msgspec

State: TypeAlias = Literal["CREATED", "ACTIVE", "RETRY", "DELIVERED", "FAILED", "CANCELED"]


class Shown(msgspec.Struct, rename="camel", omit_defaults=True):
    """A message as it was published; what is not set is left out. Times are Unix milliseconds.

    Headers are `{"Name": ["value", …]}`. A body that is not UTF-8 stands in base64; what was to be redacted is shown
    as its SHA-256.
    """

    message_id: str
    url: str
    method: str
    max_retries: int
    not_before: int
    created_at: int
    header: dict[str, list[str]] = {}
    callback: str | None = None
    failure_callback: str | None = None
    callback_header: dict[str, list[str]] | None = None
    failure_callback_header: dict[str, list[str]] | None = None
    caller_ip: str = msgspec.field(name="callerIP", default="")
    retry_delay_expression: str | None = None
    label: str | None = None
    labels: list[str] = []
    body: str = ""
    body_base64: str = ""


class DeadLetter(Shown, kw_only=True, rename="camel", omit_defaults=True):
    """A message that could not be delivered, as it was published, with the last answer to it."""

    dlq_id: str
    response_status: int
    response_header: dict[str, list[str]] = {}
    response_body: str = ""
    response_body_base64: str = ""


class Event(msgspec.Struct, rename="camel", omit_defaults=True):
    """A state that a message came to, or is in now. Times are Unix milliseconds."""

    time: int
    state: State
    message_id: str
    url: str
    method: str
    max_retries: int
    response_status: int | None = None
    next_delivery_time: int | None = None


def message(row: Mapping[str, Any]) -> Shown:
    return Shown(**_message(row))


def dead_letter(row: Mapping[str, Any]) -> DeadLetter:
    """The message with the last answer to it."""
    answer = _body(bytes(row["response_body"] or b""), False)
    return DeadLetter(
        **_message(row),
        dlq_id=row["dlq_id"],
        response_status=row["response_status"],
        response_header=msgspec.json.decode(row["response_header"] or "{}"),
        response_body=answer.get("body", ""),
        response_body_base64=answer.get("body_base64", ""),
    )


def events(row: Mapping[str, Any], now_ms: int) -> list[Event]:
    """What the row itself tells, newest first: how it ended, or the state it is in at `now_ms`, and its creation."""
    common = {"message_id": row["id"], "url": row["url"], "method": row["method"], "max_retries": row["max_retries"]}
    created = Event(time=row["created_at_ms"], state="CREATED", **common)
    if row["state"] == "created":
        return [created]
    latest = Event(
        time=row["finished_at_ms"] or now_ms,
        state=row["state"].upper(),
        response_status=row["response_status"],
        next_delivery_time=row["due_at_ms"] if row["state"] == "retry" else None,
        **common,
    )
    return [latest, created]


def _message(row: Mapping[str, Any]) -> dict[str, Any]:
    redact = {field.lower() for field in row["redact"]}
    body, is_callback = bytes(row["body"]), row["kind"] != "message"
    if is_callback and redact:
        body = _told(body)
    return {
        "message_id": row["id"],
        "url": row["url"],
        "method": row["method"],
        "max_retries": row["max_retries"],
        "not_before": row["not_before_ms"],
        "created_at": row["created_at_ms"],
        "header": _header(msgspec.json.decode(row["header"]), redact),
        "callback": row["callback"],
        "failure_callback": row["failure_callback"],
        "callback_header": msgspec.json.decode(row["callback_options"]).get("header"),
        "failure_callback_header": msgspec.json.decode(row["failure_callback_options"]).get("header"),
        "caller_ip": row["caller_ip"],
        "retry_delay_expression": row["retry_delay"],
        "label": next(iter(row["labels"]), None),
        "labels": row["labels"],
        **_body(body, "body" in redact and not is_callback),
    }


def _told(body: bytes) -> bytes:
    """A callback repeats its message, and that is private; what was answered to it is not."""
    told = msgspec.json.decode(body)
    told["sourceHeader"] = _header(told["sourceHeader"], {"header"})
    told["sourceBody"] = _redacted(told["sourceBody"].encode())
    return msgspec.json.encode(told)


def _header(header: dict[str, list[str]], redact: set[str]) -> dict[str, list[str]]:
    return {
        name: [_redacted(value.encode()) for value in values]
        if {"header", f"header[{name.lower()}]"} & redact
        else values
        for name, values in header.items()
    }


def _body(body: bytes, is_private: bool) -> dict[str, str]:
    if is_private:
        return {"body": _redacted(body)}
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}


def _redacted(value: bytes) -> str:
    return "REDACTED:" + hashlib.sha256(value).hexdigest()
