"""Holds request bodies to their bounds, and to nothing that Postgres or a follower could not take."""

from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from server.body import DROPPED_BYTES_MAX, decode_json, read_body, read_json
from server.errors import InvalidBody, TooLarge, UnsupportedMediaType
from server.tasks.endpoints import Generate

pytestmark = pytest.mark.pure

T = TypeVar("T")


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """The value of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return cast(T, stop.value)
    raise AssertionError("it waits for something")


def request(chunks: Iterable[bytes], **headers: str) -> Request:
    messages: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    upcoming = iter(messages)

    async def receive() -> Message:
        return next(upcoming)

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": pairs}, receive)


def test_a_body_is_put_together() -> None:
    assert finish(read_body(request([b"ab", b"", b"c"]), 3)) == b"abc"
    assert finish(read_body(request([]), 0)) == b""


def test_a_body_a_little_too_large_is_read_to_its_end_so_that_the_client_hears_of_it() -> None:
    with pytest.raises(TooLarge) as refusal:
        finish(read_body(request([b"x" * 10] * 4, content_length="2"), 35))
    assert "Connection" not in refusal.value.headers


def test_an_endless_one_is_cut_off_whatever_its_header_says() -> None:
    taken = 0

    async def receive() -> Message:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b"x" * 65_536, "more_body": True}

    endless = Request({"type": "http", "headers": [(b"content-length", b"2")]}, receive)
    with pytest.raises(TooLarge) as refusal:
        finish(read_body(endless, 100_000))
    assert taken == (100_000 + DROPPED_BYTES_MAX) // 65_536 + 1, "no more is taken than it takes to know"
    assert refusal.value.headers == {"Connection": "close"}


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8"])
def test_json_is_read(kind: str) -> None:
    assert finish(read_json(request([b'{"prompt":"a"}'], content_type=kind), Generate, 100)) == Generate("a")


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx"]
)
def test_what_any_page_may_send_is_not_read_as_json(kind: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        finish(read_json(request([b'{"prompt":"a"}'], content_type=kind), Generate, 100))


STORABLE = st.text(st.sampled_from('a \n\r\t"\\/\x1b\x7f\x85\u2028é😀\ufffe\U0010ffff'), max_size=30)


@given(STORABLE)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_any_other_text_comes_through(text: str) -> None:
    found = decode_json(msgspec.json.encode({"prompt": text, "params": {text: [text]}}), Generate)
    assert found == Generate(text, {text: [text]})


@pytest.mark.parametrize("text", [r"\ud83d\ude00", r"\\u0000", r"\\\\u0000", r"a\\u0000b", r"\u0001", r"\\ud800"])
def test_escapes_that_are_none_of_the_forbidden_ones(text: str) -> None:
    body = b'{"prompt":"%s"}' % text.encode()
    decode_json(body, Generate).prompt.encode()


NUL = [r"\u0000", r"a\u0000", r"\\\u0000", r"\\\\\u0000", r"\n\u0000", r"\"\u0000"]
LONE = [r"\ud800", r"a\udfffb", r"\udc00\ud800", r"\ud800\ud800", r"\ud83d\u0041", r"\uD800"]


@pytest.mark.parametrize("text", NUL + LONE)
@pytest.mark.parametrize(
    "place", ['{"prompt":"%s"}', '{"prompt":"a","params":{"x":["%s"]}}', '{"prompt":"a","params":{"%s":1}}']
)
def test_what_postgres_cannot_store_is_refused_wherever_it_stands(place: str, text: str) -> None:
    with pytest.raises(InvalidBody):
        decode_json((place % text).encode(), Generate)


@pytest.mark.parametrize("raw", [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\x00", b"\x1f", b"\xf4\x90\x80\x80"])
def test_so_are_bytes_that_are_no_text(raw: bytes) -> None:
    for body in (b'{"prompt":"' + raw + b'"}', b'{"prompt":"a","params":{"' + raw + b'":1}}', raw):
        with pytest.raises(InvalidBody):
            decode_json(body, Generate)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"a"',
        b"{}",
        b'{"prompt":null}',
        b'{"prompt":7}',
        b'{"prompt":"a"}x',
        b'{"prompt":"a",}',
        b"{'prompt':'a'}",
        b'\xef\xbb\xbf{"prompt":"a"}',
        b'{"prompt":"a","other":1}',
        b'{"prompt":"a","params":[]}',
        b'{"prompt":"a","params":{"x":NaN}}',
        b'{"prompt":"a","params":{"x":Infinity}}',
        b'{"prompt":"a","params":{"x":1e999}}',
        b'{"prompt":"a","params":{"x":' + b"9" * 50_000 + b"}}",
        b'{"prompt":"a","params":{"x":' + b"[" * 30_000 + b"]" * 30_000 + b"}}",
        b'{"prompt":"a","params":' + b'{"x":' * 12_000 + b"1" + b"}" * 12_000 + b"}",
        b"[" * 60_000,
    ],
)
def test_what_is_not_expected_is_refused_in_a_sentence(body: bytes) -> None:
    with pytest.raises(InvalidBody) as refusal:
        decode_json(body, Generate)
    assert len(refusal.value.detail) < 300


def _deep(levels: int) -> bytes:
    return b'{"prompt":"a","params":{"x":' + b"[" * levels + b"]" * levels + b"}}"


def test_nesting_has_a_limit_of_its_own_and_not_what_the_stack_has_left() -> None:
    """Else what one route accepts another, called from deeper down, cannot read."""
    assert decode_json(_deep(50), Generate)
    with pytest.raises(InvalidBody):
        decode_json(_deep(500), Generate)


@pytest.mark.parametrize(
    "text",
    [b"\\" * 65_000, b"\\u" * 32_000, b"\\u000" * 13_000, b"\\\\u0000" * 9_000, b'[\\"' * 21_000, b'["' * 32_000],
)
def test_a_hostile_body_is_looked_through_in_one_pass(text: bytes) -> None:
    """A search that began anew at each backslash or quote would take minutes here."""
    body = b'{"prompt":"' + text + b'"}'
    try:
        decode_json(body, Generate)
    except InvalidBody:
        return
