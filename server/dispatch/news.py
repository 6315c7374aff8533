"""What a generator's answer, a callback with it or a webhook says of a run: still working, done, or broken. Pure.

Shapes: Replicate's prediction object (replicate.com/docs/topics/webhooks), fal's webhook (docs.fal.ai, "Webhooks"), and
for any Standard Webhooks sender its recommended envelope: `type`, and `data` or the fields at the top.
"""

import re
from typing import Annotated, Any, TypeAlias

import msgspec

from server.dispatch.picture import Picture
from server.dispatch.result import BadResult, find_in, find_result
from server.generators import Generator

DONE = frozenset({"complete", "completed", "succeeded", "success", "successful", "done", "finished", "ready", "ok"})
BROKEN = frozenset({"failed", "failure", "error", "errored", "canceled", "cancelled", "aborted", "expired", "timeout"})
NO_REASON = "The generator gave no reason"
REASON_CHARACTERS_MAX = 500
MESSAGE_CHARACTERS_MAX = 500

# As Replicate's own client reads the progress of a model that prints a bar.
_BAR = re.compile(r"\s*([0-9]{1,3})%\s*\|")
_BARS_CHARACTERS_MAX = 4_096


Retries: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class Delivery(msgspec.Struct, rename="camel"):
    """The body of a QStash callback, as far as it is needed; `body` is the generator's answer in base64."""

    status: int = 0
    body: str | None = None
    retried: Retries = 0
    max_retries: Retries | None = None
    dlq_id: str | None = None
    source_message_id: str | None = None

    @property
    def is_good(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_last(self) -> bool:
        return self.dlq_id is not None or (self.max_retries is not None and self.retried >= self.max_retries)


class BadNews(ValueError):
    """A webhook whose body is not what its provider sends."""


class Working(msgspec.Struct, frozen=True):
    """It has begun; `progress` is percent."""

    progress: int | None = None
    message: str | None = None


class Done(msgspec.Struct, frozen=True):
    result: str | Picture


class Broken(msgspec.Struct, frozen=True):
    """It has ended without a result; `error` is for people, `code` for programs."""

    error: str
    code: str = "generator_error"


News: TypeAlias = Working | Done | Broken


def read_answer(generator: Generator, status: int, answer: bytes) -> News:
    """What a 2xx answer to the job itself says."""
    if status == 202:
        return Working()
    if generator.webhook is None:
        try:
            return Done(find_result(answer, generator.result))
        except BadResult as error:
            return Broken(str(error), "bad_response")
    if generator.webhook != "replicate":
        return Working()
    try:
        # A prediction that was waited for may have ended already.
        return read_webhook(generator, answer)
    except BadNews:
        return Working()


def read_webhook(generator: Generator, body: bytes) -> News:
    """What a verified webhook says. Raises BadNews."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadNews("not JSON") from error
    if not isinstance(document, dict):
        raise BadNews("not a JSON object")
    match generator.webhook:
        case "replicate":
            return _replicate(document, generator.result)
        case "fal":
            return _fal(document, generator.result)
        case _:
            return _standard(document, generator.result)


def _replicate(prediction: dict[str, Any], pointer: str | None) -> News:
    match prediction.get("status"):
        case "succeeded":
            return _done(prediction, pointer)
        case "failed":
            return Broken(_words(prediction.get("error")) or NO_REASON)
        case "canceled" | "aborted":
            return Broken(_words(prediction.get("error")) or "The prediction was canceled")
        case _:
            return Working(_bar(prediction.get("logs")))


def _fal(said: dict[str, Any], pointer: str | None) -> News:
    payload = said.get("payload")
    if said.get("status") == "OK":
        if payload is None and said.get("payload_error"):
            return Broken(_words(said["payload_error"]), "bad_response")
        return _done(payload, pointer)
    if said.get("status") != "ERROR":
        return Working()
    detail = payload.get("detail") if isinstance(payload, dict) else None
    details = detail if isinstance(detail, list) else [detail]
    told = [_words(part.get("msg") if isinstance(part, dict) else part) for part in details]
    return Broken(_words("; ".join(filter(None, [_words(said.get("error")), *told]))) or NO_REASON)


def _standard(said: dict[str, Any], pointer: str | None) -> News:
    data = said.get("data")
    event = {**said, **data} if isinstance(data, dict) else said
    kind = said.get("type")
    last = kind.rpartition(".")[2] if isinstance(kind, str) else ""
    status = event.get("status")
    words = {word.lower() for word in (status, last) if isinstance(word, str)}
    if words & BROKEN:
        reason = event.get("error") or event.get("message")
        reason = reason.get("message") if isinstance(reason, dict) else reason
        return Broken(_words(reason) or NO_REASON)
    if words & DONE:
        return _done(event, pointer)
    progress, message = event.get("progress"), event.get("message")
    if not isinstance(progress, int | float) or isinstance(progress, bool) or not 0 <= progress <= 100:
        progress = None
    return Working(None if progress is None else int(progress), _words(message)[:MESSAGE_CHARACTERS_MAX] or None)


def _done(document: Any, pointer: str | None) -> News:
    try:
        return Done(find_in(document, pointer))
    except BadResult as error:
        return Broken(str(error), "bad_response")


def _bar(logs: Any) -> int | None:
    if not isinstance(logs, str):
        return None
    bars = [int(found[1]) for line in logs[-_BARS_CHARACTERS_MAX:].splitlines() if (found := _BAR.match(line))]
    return min(bars[-1], 100) if bars else None


def _words(value: Any) -> str:
    """One printable line of what is text, "" of anything else."""
    if not isinstance(value, str):
        return ""
    return "".join(c if c.isprintable() else " " for c in value[:REASON_CHARACTERS_MAX]).strip()
