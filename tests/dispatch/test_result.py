"""Holds the search for a result to JSON pointers and the usual places, and what it finds to being a picture's URL."""

from typing import Any

import msgspec
import pytest

from server.dispatch.picture import Picture
from server.dispatch.result import RESULT_CHARACTERS_MAX, USUAL_PLACES, BadResult, find_reason, find_result, resolve

pytestmark = pytest.mark.pure

PICTURE = "https://cdn.test/a.png?x=1"
# The examples of RFC 6901, section 5, but for the whole document.
RFC: dict[str, Any] = {
    "foo": ["bar", "baz"],
    "": 0,
    "a/b": 1,
    "c%d": 2,
    "e^f": 3,
    "g|h": 4,
    "i\\j": 5,
    'k"l': 6,
    " ": 7,
    "m~n": 8,
}


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("/foo", ["bar", "baz"]),
        ("/foo/0", "bar"),
        ("/foo/1", "baz"),
        ("/", 0),
        ("/a~1b", 1),
        ("/c%d", 2),
        ("/e^f", 3),
        ("/g|h", 4),
        ("/i\\j", 5),
        ('/k"l', 6),
        ("/ ", 7),
        ("/m~0n", 8),
    ],
)
def test_pointers(pointer: str, value: Any) -> None:
    assert resolve(RFC, pointer) == value


def test_an_escaped_escape_is_undone_once() -> None:
    assert resolve({"~1": "x"}, "/~01") == "x"


@pytest.mark.parametrize(
    "pointer",
    [
        "/none",
        "/foo/2",
        "/foo/-1",
        "/foo/-",
        "/foo/01",
        "/foo/\u0660",
        "/foo/ 0",
        "/foo/0/0",
        "/a/b",
        "/foo/9999999999999",
        "/foo/x",
    ],
)
def test_pointers_to_nothing(pointer: str) -> None:
    assert resolve(RFC, pointer) is None


def find(answer: Any, pointer: str | None = None) -> str | Picture:
    return find_result(msgspec.json.encode(answer), pointer)


@pytest.mark.parametrize(
    "answer",
    [
        {"result": PICTURE},
        {"url": PICTURE},
        {"data": [{"url": PICTURE}, {"url": "https://cdn.test/b.png"}]},
        {"output": [PICTURE, "https://cdn.test/b.png"]},
        {"output": PICTURE},
        {"images": [{"url": PICTURE}]},
        {"result": None, "url": "", "data": [], "output": {"0": PICTURE}},
        {"result": {"not": "a string"}, "url": PICTURE},
    ],
)
def test_the_usual_places(answer: Any) -> None:
    assert find(answer) == PICTURE


def test_a_pointer_is_the_only_place_then() -> None:
    assert find({"url": "https://other.test/", "deep": [{"a/b": PICTURE}]}, "/deep/0/a~1b") == PICTURE
    with pytest.raises(BadResult, match="/deep"):
        find({"url": PICTURE}, "/deep")


def test_the_first_place_wins_and_the_message_names_them_all() -> None:
    assert find({"url": "https://other.test/", "result": PICTURE}) == PICTURE
    with pytest.raises(BadResult, match=", ".join(USUAL_PLACES)):
        find({})


@pytest.mark.parametrize("result", ["http://h/a", "HTTPS://H/a", "https://h:8443/ü", "/results/Ab_-9.png"])
def test_results(result: str) -> None:
    assert find({"result": result}) == result


@pytest.mark.parametrize(
    "result",
    [
        "a.png",
        "/a.png",
        "//evil.test/results/a.png",
        "\\\\evil.test\\results\\a.png",
        "/results/",
        "/results/../api/generate",
        "/results/%2e%2e/api/generate",
        "/results/a/../../api",
        "/results/\\evil.test",
        "javascript:alert(1)",
        "data:image/png;base64,AAAA",
        "file:///etc/passwd",
        "ftp://h/a",
        "https:",
        "https://",
        "https:///a",
        "http://:80/a",
        "http://h:99999/a",
        "https://[x/a",
        " https://h/a",
        "https://h/a b",
        "https://h/a\n",
        "ht\ntps://h/a",
        "https://h/\0",
        "https://h/\u2028",
        "https://h/\u202egnp.exe",
        "https://h/" + "x" * RESULT_CHARACTERS_MAX,
    ],
)
def test_what_is_no_picture_of_ours_or_on_the_web(result: str) -> None:
    with pytest.raises(BadResult):
        find({"result": result})


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"OK",
        b"<html>",
        b"\xff",
        b"null",
        b"[]",
        b"7",
        b'"https://h/a"',
        b'{"result":"https://h/a"',
        b'{"result":"https://h/a"}x',
        b'{"result":"\\ud800"}',
        b'{"result":7}',
        b'{"result":["https://h/a"]}',
        b'{"result":{}}',
        b"[" * 100_000,
        b'{"result":' + b"9" * 100_000 + b"}",
    ],
)
def test_what_is_no_answer(answer: bytes) -> None:
    with pytest.raises(BadResult) as refusal:
        find_result(answer, None)
    assert "Traceback" not in str(refusal.value)
    assert len(str(refusal.value)) < 300, "a sentence, not the answer itself"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b'{"error":"no capacity"}', "no capacity"),
        (b'{"error":{"code":7,"message":"no paint left"}}', "no paint left"),
        (b'{"detail":"too large"}', "too large"),
        (b'{"error":""}', '{"error":""}'),
        (b'["odd"]', '["odd"]'),
        (b"plain words", "plain words"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"[" * 5_000, "[" * 5_000),
        (b"", ""),
    ],
)
def test_why_it_failed_is_said_in_its_own_words(answer: bytes, reason: str) -> None:
    assert find_reason(answer) == reason
