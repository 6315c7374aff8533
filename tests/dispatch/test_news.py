"""Holds the reading of answers and webhooks to what Replicate, fal and Standard Webhooks senders publish."""

import base64
from typing import Any

import msgspec
import pytest

from server.dispatch.news import BadNews, Broken, Done, News, Working, read_answer, read_webhook
from server.dispatch.picture import Picture
from server.generators import Generator, Provider

pytestmark = pytest.mark.pure

PICTURE = "https://cdn.test/a.png"
PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 30
BASE64 = base64.b64encode(PNG).decode()
NOTHING_FOUND = "The generator's answer has no result at "


def read(provider: Provider, body: Any, pointer: str | None = None) -> News:
    generator = Generator(url="https://g.test/?{webhookUrl}", webhook=provider, result=pointer)
    return read_webhook(generator, msgspec.json.encode(body))


def prediction(**fields: Any) -> dict[str, Any]:
    """The documented example, with what changes."""
    usual = {
        "id": "ufawqhfynnddngldkgtslldrkq",
        "version": "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa",
        "created_at": "2022-04-26T22:13:06.224088Z",
        "started_at": None,
        "completed_at": None,
        "status": "starting",
        "input": {"text": "Alice"},
        "output": None,
        "error": None,
        "logs": None,
        "metrics": {},
        "urls": {"get": "https://api.replicate.com/v1/predictions/x"},
    }
    return usual | fields


@pytest.mark.parametrize(
    ("fields", "news"),
    [
        ({}, Working()),
        ({"status": "processing", "logs": "Using seed: 7\n"}, Working()),
        ({"status": "processing", "logs": "  0%|   | 0/50\n 46%|####6  | 23/50 [00:01<00:01]\n"}, Working(46)),
        ({"status": "processing", "logs": "999%| |"}, Working(100)),
        ({"status": "processing", "logs": "saved 50% of it\n"}, Working()),
        ({"status": "succeeded", "output": [PICTURE, "https://cdn.test/b.png"]}, Done(PICTURE)),
        ({"status": "succeeded", "output": PICTURE}, Done(PICTURE)),
        ({"status": "succeeded", "output": "data:image/png;base64," + BASE64}, Done(Picture(PNG, "png"))),
        ({"status": "failed", "error": "CUDA out\nof memory"}, Broken("CUDA out of memory")),
        ({"status": "failed"}, Broken("The generator gave no reason")),
        ({"status": "canceled"}, Broken("The prediction was canceled")),
        ({"status": "aborted"}, Broken("The prediction was canceled")),
        ({"status": None}, Working()),
        ({"status": ["succeeded"]}, Working()),
    ],
)
def test_replicate(fields: dict[str, Any], news: News) -> None:
    assert read("replicate", prediction(**fields)) == news


def test_replicate_without_output() -> None:
    news = read("replicate", prediction(status="succeeded"))
    assert isinstance(news, Broken)
    assert (news.error.startswith(NOTHING_FOUND), news.code) == (True, "bad_response")
    assert read("replicate", prediction(status="succeeded", output={"x": PICTURE}), "/output/x") == Done(PICTURE)


REQUEST = {"request_id": "123e4567-e89b-12d3-a456-426614174000", "gateway_request_id": "123e4567"}


@pytest.mark.parametrize(
    ("fields", "news"),
    [
        ({"status": "OK", "payload": {"images": [{"url": PICTURE, "width": 1}], "seed": 1}}, Done(PICTURE)),
        ({"status": "OK", "payload": None, "payload_error": "no JSON"}, Broken("no JSON", "bad_response")),
        (
            {
                "status": "ERROR",
                "error": "Invalid status code: 422",
                "payload": {"detail": [{"loc": ["body", "prompt"], "msg": "field required", "type": "missing"}]},
            },
            Broken("Invalid status code: 422; field required"),
        ),
        ({"status": "ERROR", "error": "x", "payload": {"detail": "no"}}, Broken("x; no")),
        ({"status": "ERROR", "error": "x" * 900, "payload": None}, Broken("x" * 500)),
        ({"status": "ERROR", "payload": {"detail": [7, {}]}}, Broken("The generator gave no reason")),
        ({"status": "IN_PROGRESS"}, Working()),
    ],
)
def test_fal(fields: dict[str, Any], news: News) -> None:
    assert read("fal", REQUEST | fields) == news


def test_fal_s_pointer_counts_from_its_payload() -> None:
    assert read("fal", {"status": "OK", "payload": {"image": {"url": PICTURE}}}, "/image/url") == Done(PICTURE)
    assert isinstance(read("fal", {"status": "OK", "payload": []}), Broken)


@pytest.mark.parametrize(
    ("body", "news"),
    [
        ({"type": "prompt.complete", "id": "x", "images": [BASE64], "prompt": {}}, Done(Picture(PNG, "png"))),
        ({"type": "prompt.failed", "error": "no such node", "id": "x"}, Broken("no such node")),
        ({"type": "image.completed", "timestamp": "2022", "data": {"url": PICTURE}}, Done(PICTURE)),
        ({"type": "image.updated", "data": {"status": "Succeeded", "output": [PICTURE]}}, Done(PICTURE)),
        ({"status": "done", "result": PICTURE}, Done(PICTURE)),
        ({"type": "image.failed", "data": {"error": {"code": 7, "message": "too dark"}}}, Broken("too dark")),
        ({"type": "image.completed", "data": {"status": "failed", "message": "m"}}, Broken("m")),
        ({"type": "image.progress", "data": {"progress": 40.7, "message": "Light"}}, Working(40, "Light")),
        ({"type": "image.progress", "progress": 140}, Working()),
        ({"type": "image.progress", "progress": True, "message": 7}, Working()),
        ({"type": 7, "status": [], "data": "x"}, Working()),
        ({}, Working()),
    ],
)
def test_standard(body: Any, news: News) -> None:
    assert read("standard", body) == news


@pytest.mark.parametrize("body", [b"", b"x", b"[]", b"null", b'"OK"', b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("provider", ["standard", "replicate", "fal"])
def test_no_news(provider: Provider, body: bytes) -> None:
    with pytest.raises(BadNews):
        read_webhook(Generator(url="https://g.test/", webhook=provider), body)


def test_what_an_answer_means_is_said_by_who_calls_back() -> None:
    plain = Generator(url="https://g.test/")
    waiting = {p: Generator(url="https://g.test/?{webhookUrl}", webhook=p) for p in ("standard", "replicate", "fal")}
    answer = msgspec.json.encode({"url": PICTURE})
    assert read_answer(plain, 200, answer) == read_answer(plain, 201, answer) == Done(PICTURE)
    assert read_answer(plain, 202, answer) == Working()
    assert isinstance(read_answer(plain, 200, b"{}"), Broken)
    assert read_answer(waiting["standard"], 200, answer) == read_answer(waiting["fal"], 200, answer) == Working()
    # Replicate may be told to hold its answer until there is an end.
    for fields, news in (
        ({}, Working()),
        ({"status": "succeeded", "output": [PICTURE]}, Done(PICTURE)),
        ({"status": "failed", "error": "x"}, Broken("x")),
    ):
        assert read_answer(waiting["replicate"], 201, msgspec.json.encode(prediction(**fields))) == news
    assert read_answer(waiting["replicate"], 201, b"<html>") == Working()
