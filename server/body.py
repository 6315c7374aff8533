"""Reads request bodies: counted while they stream, decoded and validated in one step, refused in one sentence."""

import re
from typing import TypeVar

import msgspec
from starlette.requests import Request

from server.errors import InvalidBody, TooLarge, UnsupportedMediaType

T = TypeVar("T")

# Postgres takes no NUL in text or jsonb. An even number of backslashes before it is text about NUL, not NUL.
_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


async def read_body(request: Request, bytes_max: int) -> bytes:
    """The raw body. Raises TooLarge as soon as it is, whatever Content-Length said."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > bytes_max:
            raise TooLarge(f"The body may have {bytes_max} bytes at most", headers={"Connection": "close"})
        chunks.append(chunk)
    return b"".join(chunks)


def decode_json(body: bytes, kind: type[T]) -> T:
    """The body as a `kind`. Raises InvalidBody, saying where it does not fit."""
    if _ESCAPED_NUL.search(body):
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
