"""Reads request bodies: counted while they stream, decoded and validated in one step, refused in one sentence."""

import re
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from server.errors import InvalidBody, TooLarge, UnsupportedMediaType

T = TypeVar("T")

DEPTH_MAX = 100
DROPPED_BYTES_MAX = 1024 * 1024

# A string, or a bracket outside of strings; possessive, so that its time is linear.
_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)
# Postgres takes no NUL in text or jsonb. An even number of backslashes before it is text about NUL, not NUL.
_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


async def read_body(request: Request, bytes_max: int) -> bytes:
    """The raw body, as receive_body()."""
    return await receive_body(request.receive, bytes_max)


async def receive_body(receive: Receive, bytes_max: int) -> bytes:
    """The raw body. Raises TooLarge when it is, whatever Content-Length said, and ClientDisconnect.

    A moderate excess is read and dropped, so that the client is still there to hear the answer; more cuts it off.
    """
    chunks: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if size <= bytes_max:
            chunks.append(chunk)
        elif size > bytes_max + DROPPED_BYTES_MAX:
            raise _too_large(bytes_max, {"Connection": "close"})
    if size > bytes_max:
        raise _too_large(bytes_max)
    return b"".join(chunks)


def _too_large(bytes_max: int, headers: dict[str, str] | None = None) -> TooLarge:
    return TooLarge(f"The body may have {bytes_max} bytes at most", headers=headers)


def _too_deep(body: bytes) -> bool:
    """What the decoder bears depends on the stack that is left; what is accepted must not."""
    if body.count(b"[") + body.count(b"{") <= DEPTH_MAX:
        return False
    depth = 0
    for match in _STRUCTURE.finditer(body):
        depth += match[0] in (b"[", b"{")
        depth -= match[0] in (b"]", b"}")
        if depth > DEPTH_MAX:
            return True
    return False


def decode_json(body: bytes, kind: type[T]) -> T:
    """The body as a `kind`. Raises InvalidBody, saying where it does not fit."""
    if _too_deep(body):
        raise InvalidBody(f"Nested deeper than {DEPTH_MAX}")
    if b"\\u0000" in body and _ESCAPED_NUL.search(body):
        raise InvalidBody("NUL characters (\\u0000) cannot be stored")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise InvalidBody(f"Not the JSON expected here: {error}") from error


async def read_json(request: Request, kind: type[T], bytes_max: int) -> T:
    """The request's JSON body as a `kind`. Raises UnsupportedMediaType, TooLarge, InvalidBody."""
    # A form or text/plain may be sent by any page without asking first.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType
    return decode_json(await read_body(request, bytes_max), kind)
