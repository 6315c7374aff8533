"""A message as a publisher wants it: the headers of a publish request, read and checked. Pure.

Source of the names and rules: the QStash API as its published SDKs speak it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from server.dispatch.retry import BadDuration, BadExpression, duration_seconds, parse_delay

RETRIES_DEFAULT = 3
RETRIES_MAX = 1000
TIMEOUT_SECONDS_DEFAULT = 900.0
TIMEOUT_SECONDS_MAX = 86_400.0
DELAY_SECONDS_MAX = 90 * 86_400.0
URL_CHARACTERS_MAX = 8_192
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
# Says of an id that our own dispatcher gave it: only that one tells a task when its run begins.
OUR_ID = "msg_taskbeam_"
_OPTIONS = ("method", "timeout", "retries", "retry-delay", "delay")


class BadMessage(ValueError):
    """The request cannot become a message; the text goes to the publisher."""


class Draft(msgspec.Struct, kw_only=True):
    """What is to be delivered, and how. Delays and times in seconds; headers as {"Name": ["value", …]}."""

    url: str
    method: str = "POST"
    header: dict[str, list[str]] = {}
    body: bytes = b""
    max_retries: int = RETRIES_DEFAULT
    retry_delay: str | None = None
    timeout_seconds: float = TIMEOUT_SECONDS_DEFAULT
    delay_seconds: float = 0.0
    not_before: float | None = None
    deduplication_id: str | None = None
    content_deduplication: bool = False
    callback: str | None = None
    failure_callback: str | None = None
    callback_options: dict[str, Any] = {}
    failure_callback_options: dict[str, Any] = {}
    redact: list[str] = []
    labels: list[str] = []


class CallbackBody(msgspec.Struct, rename="camel", omit_defaults=True):
    """What a callback tells of a delivery. Times are Unix milliseconds; bodies are in base64."""

    status: int
    header: dict[str, list[str]]
    body: str
    retried: int
    max_retries: int
    source_message_id: str
    url: str
    method: str
    source_header: dict[str, list[str]]
    source_body: str
    not_before: int
    created_at: int
    caller_ip: str = msgspec.field(name="callerIP")
    dlq_id: str | None = None


def read_draft(url: str, headers: Iterable[tuple[str, str]], body: bytes) -> Draft:
    """The draft for `url` from a publish request's headers (any case; query options look the same).

    Raises BadMessage.
    """
    given: dict[str, str] = {}
    forwarded: dict[str, list[str]] = {}
    for name, value in headers:
        low = name.lower()
        if low == "content-type" or low.startswith("upstash-"):
            _check_value(name, value)
        if low.startswith("upstash-forward-"):
            _forward(forwarded, low.removeprefix("upstash-forward-"), value)
        elif low == "content-type":
            forwarded["Content-Type"] = [value]
        elif low.startswith("upstash-") and not low.startswith("upstash-telemetry-"):
            given[low.removeprefix("upstash-")] = value
    draft = Draft(url=checked_url(url), header=forwarded, body=body)
    for name, value in _read_options(given).items():
        setattr(draft, name, value)
    for kind in ("callback", "failure-callback"):
        field = kind.replace("-", "_")
        if given.get(kind):
            setattr(draft, field, checked_url(given[kind]))
            setattr(draft, f"{field}_options", _callback_options(given, kind))
    if "not-before" in given:
        if not re.fullmatch(r"\d{1,11}", given["not-before"], re.ASCII):
            raise BadMessage("Upstash-Not-Before is a Unix time in seconds")
        draft.not_before = float(given["not-before"])
    draft.deduplication_id = given.get("deduplication-id") or None
    if draft.deduplication_id and len(draft.deduplication_id) > 256:
        raise BadMessage("Upstash-Deduplication-Id has more than 256 characters")
    draft.content_deduplication = given.get("content-based-deduplication", "").lower() == "true"
    draft.redact = [part.strip() for part in given.get("redact-fields", "").split(",") if part.strip()]
    draft.labels = [part.strip() for part in given.get("label", "").split(",") if part.strip()]
    return draft


def checked_url(url: str) -> str:
    """The URL if it is one that can be delivered to in principle. Raises BadMessage."""
    if len(url) > URL_CHARACTERS_MAX:
        raise BadMessage(f"the destination has more than {URL_CHARACTERS_MAX} characters")
    # Visible ASCII only: what else a URL may mean is written in escapes.
    if not re.fullmatch(r"https?://[^/?#@\\%]+([/?][^#]*)?", url, re.IGNORECASE) or not re.fullmatch(r"[!-~]+", url):
        raise BadMessage("the destination must be an http:// or https:// URL without credentials")
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise BadMessage("the destination's host or port cannot be")
    return url


def canonical(name: str) -> str:
    """A header's name as it is stored and shown: X-Api-Key."""
    return "-".join(part.capitalize() for part in name.split("-"))


def _check_value(name: str, value: str) -> None:
    """Options may come from the query too, where anything can be written in escapes."""
    if any((c < " " and c != "\t") or c == "\x7f" for c in value):
        raise BadMessage(f"{canonical(name)[:60]} has control characters")


def _forward(forwarded: dict[str, list[str]], name: str, value: str) -> None:
    """Add a header to send along; what the dispatcher says itself cannot be said for it."""
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9a-z-]{1,128}", name) or name.startswith("upstash-"):
        return
    try:
        value.encode("latin-1")
    except UnicodeEncodeError:
        raise BadMessage(f"Upstash-Forward-{canonical(name)} cannot be sent as a header") from None
    forwarded.setdefault(canonical(name), []).append(value)


def _read_options(given: Mapping[str, str]) -> dict[str, Any]:
    """The options that a message and its callbacks have in common, as fields of a Draft."""
    options: dict[str, Any] = {}
    if method := given.get("method"):
        if method.upper() not in METHODS:
            raise BadMessage(f"Upstash-Method is one of {', '.join(METHODS)}")
        options["method"] = method.upper()
    if retries := given.get("retries"):
        if not re.fullmatch(r"\d{1,4}", retries, re.ASCII) or int(retries) > RETRIES_MAX:
            raise BadMessage(f"Upstash-Retries is a number from 0 to {RETRIES_MAX}")
        options["max_retries"] = int(retries)
    if retry_delay := given.get("retry-delay"):
        try:
            parse_delay(retry_delay)
        except BadExpression as error:
            raise BadMessage(f"Upstash-Retry-Delay: {error}") from error
        options["retry_delay"] = retry_delay
    for name, field, low, high in (
        ("timeout", "timeout_seconds", 0.001, TIMEOUT_SECONDS_MAX),
        ("delay", "delay_seconds", 0.0, DELAY_SECONDS_MAX),
    ):
        if given.get(name):
            try:
                seconds = duration_seconds(given[name])
            except BadDuration as error:
                raise BadMessage(f"Upstash-{name.title()}: {error}") from error
            if not low <= seconds <= high:
                raise BadMessage(f"Upstash-{name.title()} is at most {high:.0f}s")
            options[field] = seconds
    return options


def _callback_options(given: Mapping[str, str], kind: str) -> dict[str, Any]:
    prefix = f"{kind}-"
    mine = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
    options = _read_options({name: mine[name] for name in _OPTIONS if name in mine})
    header: dict[str, list[str]] = {}
    for name, value in mine.items():
        if name.startswith("forward-"):
            _forward(header, name.removeprefix("forward-"), value)
    return {**options, "header": header} if header else options
