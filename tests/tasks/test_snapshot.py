"""Holds the snapshot to the one form that every transport shows: names, times, URLs, one line."""

import datetime as dt
from typing import Any, cast

import asyncpg
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.tasks.snapshot import TASK_ID, TaskChange, created_at, from_body, from_row, with_advice

pytestmark = pytest.mark.pure

NAMES = [
    "taskId", "status", "result", "error", "errorCode", "prompt", "params", "progress", "message", "preview", "step",
    "steps", "attempt", "version", "statusVersion", "cancelled", "batchId", "queuePosition", "etaMs", "pollAfterMs",
    "createdAt", "updatedAt",
]  # fmt: skip
CREATED = dt.datetime(2030, 1, 2, 3, 4, 5, 678000, dt.UTC)
CHANGED = CREATED + dt.timedelta(seconds=9)
ROW: dict[str, Any] = {
    "task_id": "t-1",
    "user_id": "00000000-0000-4000-8000-000000000001",
    "version": 5,
    "owner_seq": 71,
    "status_version": 5,
    "status": "completed",
    "attempt": 1,
    "progress": 100,
    "message": None,
    "preview": None,
    "step": None,
    "steps": None,
    "result": "/results/a.png",
    "error": None,
    "error_code": None,
    "cancelled": False,
    "batch_id": None,
    "prompt": "a fox",
    "params": '{"scale": 1.10, "big": 123456789012345678901234567890}',
    "created_at": CREATED,
    "at": CHANGED,
}


def change(public_url: str = "", **fields: Any) -> TaskChange:
    return from_row(cast(asyncpg.Record, ROW | fields), public_url)


def shown(public_url: str = "", **fields: Any) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.json.decode(change(public_url, **fields).body)
    return document


def test_it_has_the_names_of_the_contract_and_no_others() -> None:
    assert list(shown()) == NAMES


def test_values_stand_under_their_names() -> None:
    fields: dict[str, Any] = {
        "error": "no",
        "error_code": "timeout",
        "message": "m",
        "preview": "p",
        "step": 3,
        "steps": 9,
    }
    document = shown(**fields, status="failed", result=None, attempt=2, progress=40, cancelled=True, batch_id="b")
    assert document == {
        "taskId": "t-1",
        "status": "failed",
        "result": None,
        "error": "no",
        "errorCode": "timeout",
        "prompt": "a fox",
        "params": {"scale": 1.1, "big": 123456789012345678901234567890},
        "progress": 40,
        "message": "m",
        "preview": "p",
        "step": 3,
        "steps": 9,
        "attempt": 2,
        "version": 5,
        "statusVersion": 5,
        "cancelled": True,
        "batchId": "b",
        "queuePosition": None,
        "etaMs": None,
        "pollAfterMs": None,
        "createdAt": "2030-01-02T03:04:05.678000Z",
        "updatedAt": "2030-01-02T03:04:14.678000Z",
    }


@pytest.mark.parametrize(
    ("stored", "seen"),
    [
        ("/results/a.png", "https://app.test/results/a.png"),
        ("https://cdn.test/a.png", "https://cdn.test/a.png"),
        (None, None),
    ],
)
def test_a_result_of_ours_is_shown_below_the_public_url(stored: str | None, seen: str | None) -> None:
    assert shown("https://app.test", result=stored)["result"] == seen


def test_without_a_public_url_it_stays_relative() -> None:
    assert shown("")["result"] == "/results/a.png"


def test_the_change_says_of_itself_what_the_row_said() -> None:
    made = change()
    assert (made.task_id, made.version, made.status_version, made.status) == ("t-1", 5, 5, "completed")
    assert (made.seq, made.user_id, made.at) == (71, ROW["user_id"], CHANGED.timestamp())
    assert created_at(made.body) == CREATED


@pytest.mark.parametrize(
    ("fields", "is_status", "is_terminal"),
    [
        ({"status": "pending", "version": 1, "status_version": 1}, True, False),
        ({"status": "processing", "version": 5, "status_version": 2}, False, False),
        ({"status": "completed"}, True, True),
        ({"status": "failed"}, True, True),
    ],
)
def test_kinds_of_change(fields: dict[str, Any], is_status: bool, is_terminal: bool) -> None:
    assert (change(**fields).is_status, change(**fields).is_terminal) == (is_status, is_terminal)


def test_a_change_comes_back_from_its_body() -> None:
    made = change()
    assert from_body(made.body, made.seq) == msgspec.structs.replace(made, user_id="")


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b'{"taskId":"t"}', b"\xff", change().body[:-1]])
def test_anything_else_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_body(body)


def test_advice_changes_nothing_but_itself() -> None:
    made = change()
    advised = with_advice(made.body, poll_after_ms=1500)
    assert msgspec.json.decode(advised) == shown() | {"pollAfterMs": 1500}
    assert b'{"scale": 1.10, "big": 123456789012345678901234567890}' in advised, "params as they were written"
    assert with_advice(advised, poll_after_ms=None) == made.body


HOSTILE = st.text(st.sampled_from("\n\r\u2028\u2029\0\"\\':{}<>\x1b\x85\x7f aé😀\ufffe\U0010ffff"), max_size=40)


@given(HOSTILE)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_any_text_stays_on_one_line_and_survives(text: str) -> None:
    made = change(prompt=text, error=text, message=text)
    assert not {0x0A, 0x0D, 0x00} & set(made.body)
    document = msgspec.json.decode(made.body)
    assert (document["prompt"], document["error"], document["message"]) == (text, text, text)


@pytest.mark.parametrize("task_id", ["t", "A-z_0", "x" * 128])
def test_task_ids(task_id: str) -> None:
    assert TASK_ID.fullmatch(task_id)


@pytest.mark.parametrize(
    "task_id",
    [
        "",
        "x" * 129,
        "*",
        "task:*",
        "[a-z]",
        "a\r\nPUBLISH x y",
        "a\n",
        "__keyspace@0__:*",
        "a\0",
        "\u202ea",
        "é",
        "٣",
        "a b",
    ],
)
def test_what_could_be_something_else_to_redis_is_no_task_id(task_id: str) -> None:
    assert not TASK_ID.fullmatch(task_id)
