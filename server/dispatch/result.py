"""Finds the result in what a generator answered. Pure.

The answer is a picture itself, or any HTTP image API's JSON; where the result stands in that is a JSON pointer
(RFC 6901), or one of the usual places. There it is a URL, or the picture in base64.
"""

import re
from typing import Any
from urllib.parse import urlsplit

import msgspec

from server.dispatch.picture import BadPicture, Picture, read_bytes, read_text

RESULT_CHARACTERS_MAX = 8_192
REASON_PLACES = ("/error", "/error/message", "/message", "/detail")
USUAL_PLACES = (
    "/result",
    "/url",
    "/data/0/url",
    "/data/0/b64_json",
    "/output/0",
    "/output",
    "/images/0/url",
    "/images/0",
)


# A file name of our result store: no folder, no escape, so that no other route of ours can be meant.
STORED = re.compile(r"/results/[A-Za-z0-9_-]{1,128}(\.[A-Za-z0-9]{1,8})?", re.ASCII)
INDEX = re.compile(r"0|[1-9][0-9]{0,8}", re.ASCII)


class BadResult(ValueError):
    """The answer holds no usable result; the message is a sentence for the task's owner."""


def find_result(answer: bytes, pointer: str | None) -> str | Picture:
    """The URL of the result, or the picture itself. Relative URLs are our own result store's. Raises BadResult."""
    try:
        picture = read_bytes(answer)
    except BadPicture as error:
        raise BadResult(str(error)) from error
    if picture is not None:
        return picture
    try:
        document = msgspec.json.decode(answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadResult("The generator's answer is not JSON") from error
    return find_in(document, pointer)


def find_in(document: Any, pointer: str | None) -> str | Picture:
    """As find_result(), in an answer that was decoded."""
    found = (resolve(document, place) for place in ([pointer] if pointer else USUAL_PLACES))
    value = next((v for v in found if isinstance(v, str) and v), None)
    if value is None:
        raise BadResult(f"The generator's answer has no result at {pointer or ', '.join(USUAL_PLACES)}")
    return read_result(value)


def read_result(value: str) -> str | Picture:
    """One result: a URL, a data URL, or a picture in base64. Raises BadResult."""
    try:
        return read_text(value) or _checked(value)
    except BadPicture as error:
        raise BadResult(str(error)) from error


def find_reason(answer: bytes) -> str:
    """Why it failed, as the generator says it: in the usual places of a JSON answer, else the answer itself."""
    try:
        document = msgspec.json.decode(answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        document = None
    found = (resolve(document, place) for place in REASON_PLACES)
    said = next((value for value in found if isinstance(value, str) and value), None)
    return said if said is not None else answer[:RESULT_CHARACTERS_MAX].decode("utf-8", "replace")


def _checked(value: str) -> str:
    if len(value) > RESULT_CHARACTERS_MAX:
        raise BadResult(f"The generator's result is longer than {RESULT_CHARACTERS_MAX} characters")
    if STORED.fullmatch(value):
        return value
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise BadResult("The generator's result is not a URL") from error
    if not usable or not value.isprintable() or " " in value:
        raise BadResult("The generator's result is not an http(s) URL")
    return value


def resolve(document: Any, pointer: str) -> Any:
    """What a JSON pointer points to, None where there is nothing."""
    value = document
    for token in pointer.split("/")[1:]:
        key = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and INDEX.fullmatch(key) and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value
