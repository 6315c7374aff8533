"""Holds pictures in answers to their first bytes, to a bound, and to the places where image APIs put them."""

import base64
from typing import Any

import msgspec
import pytest

from server.dispatch.picture import PICTURE_BYTES_MAX, Picture, kind_of
from server.dispatch.result import BadResult, find_result

pytestmark = pytest.mark.pure

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(200))
JPEG = b"\xff\xd8\xff\xe0" + b"x" * 99
WEBP = b"RIFF\x24\x00\x00\x00WEBPVP8 " + b"x" * 30


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def find(answer: Any, pointer: str | None = None) -> str | Picture:
    return find_result(msgspec.json.encode(answer), pointer)


@pytest.mark.parametrize(("data", "kind"), [(PNG, "png"), (JPEG, "jpg"), (WEBP, "webp")])
def test_kinds(data: bytes, kind: Any) -> None:
    picture = Picture(data, kind)
    assert kind_of(data) == kind
    assert find_result(data, None) == find_result(data, "/anywhere") == picture
    for value in (
        text(data),
        text(data).rstrip("="),
        text(data)[:40] + "\n" + text(data)[40:],
        f"data:image/{kind};base64,{text(data)}",
        f"DATA:image/gif;charset=x;BASE64,{text(data)}",  # the bytes count, not what is said of them
    ):
        assert find({"result": value}) == picture, value[:30]


@pytest.mark.parametrize(
    "answer",
    [
        {"created": 1, "data": [{"b64_json": text(PNG)}, {"b64_json": text(JPEG)}]},
        {"images": [text(PNG)], "parameters": {}, "info": "{}"},
        {"output": ["data:image/png;base64," + text(PNG)]},
        {"images": [{"url": "data:image/png;base64," + text(PNG)}]},
    ],
)
def test_where_image_apis_put_them(answer: Any) -> None:
    assert find(answer) == Picture(PNG, "png")


def test_where_a_pointer_says() -> None:
    assert find({"a": [{"b": text(PNG)}], "result": text(JPEG)}, "/a/0/b") == Picture(PNG, "png")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a" + b"x" * 40,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<html>",
        b"RIFF\x24\x00\x00\x00WAVE" + b"x" * 30,
        PNG[:7],
        b" " + PNG,
        b"\x89PNG\n\x1a\n",
    ],
)
def test_nothing_else(data: bytes) -> None:
    assert kind_of(data) is None
    for answer in (data, msgspec.json.encode({"result": text(data)})):
        with pytest.raises(BadResult):
            find_result(answer, None)
    with pytest.raises(BadResult, match="only png, jpeg and webp"):
        find({"result": f"data:image/png;base64,{text(data)}"})


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("data:image/png," + "x" * 20, "not in base64"),
        ("data:image/png;base64," + "%" * 20, "not base64"),
        ("data:image/png;base64,", "only png"),
        ("data:;base64", "only png"),
        (text(PNG)[:-4] + "%%%%", "not base64"),
        (text(PNG) + "=", "not base64"),
    ],
)
def test_broken(value: str, reason: str) -> None:
    with pytest.raises(BadResult, match=reason) as refusal:
        find({"result": value})
    assert len(str(refusal.value)) < 200


def test_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PICTURE_BYTES_MAX == 24 * 1024 * 1024
    most = 30_000  # the same rule, in a moment
    monkeypatch.setattr("server.dispatch.picture.PICTURE_BYTES_MAX", most)
    fits = PNG + bytes(most - len(PNG))
    assert find_result(fits, None) == find({"result": text(fits)}) == Picture(fits, "png")
    for answer in (fits + b"x", msgspec.json.encode({"result": text(fits + b"x")})):
        with pytest.raises(BadResult, match=f"more than {most} bytes"):
            find_result(answer, None)
    with pytest.raises(BadResult, match="more than"):
        find({"result": "data:image/png;base64," + "\n" * (2 * most)})
