"""Holds what goes through Redis to its form in both directions, and the reader to refusing everything else."""

import datetime as dt

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.push.publisher import decode, encode
from server.tasks.snapshot import Snapshot, TaskChange, from_body
from server.tasks.state import STATUSES, Status

pytestmark = pytest.mark.pure

USER = "00000000-0000-4000-8000-000000000001"


def change(status: Status, version: int, status_version: int, seq: int, prompt: str) -> TaskChange:
    at = dt.datetime(2030, 1, 1, 0, 0, 0, 250_000, dt.UTC)
    snapshot = Snapshot(
        task_id="t",
        status=status,
        prompt=prompt,
        params=msgspec.Raw(b"{}"),
        attempt=1,
        version=version,
        status_version=status_version,
        created_at=at,
        updated_at=at,
    )
    return msgspec.structs.replace(from_body(msgspec.json.encode(snapshot), seq), user_id=USER)


CHANGES = st.builds(
    change,
    st.sampled_from(STATUSES),
    st.integers(2, 2**31 - 1),
    st.integers(1, 2),
    st.integers(1, 2**53),
    st.text(st.sampled_from('a \n\r\0é😀 0"\\'), max_size=20),
)


@given(CHANGES)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_what_is_published_is_what_followers_get(made: TaskChange) -> None:
    (task_topic, task_data), (user_topic, user_data) = encode(made)
    assert (task_topic, user_topic) == ("task:t", f"user:{USER}")
    on_task = decode(task_topic, task_data)
    assert on_task.change == msgspec.structs.replace(made, seq=0, user_id="")
    assert (on_task.position, on_task.cursor) == (made.version, str(made.version))
    on_user = decode(user_topic, user_data)
    assert on_user.change == msgspec.structs.replace(made, user_id="")
    assert (on_user.position, on_user.since, on_user.cursor) == (made.seq, made.seq - 1, f"s{made.seq}")


def test_before_a_progress_lies_its_last_change_of_status() -> None:
    (_, data), _ = encode(change("processing", 9, 2, 1, ""))
    assert decode("task:t", data).since == 2
    (_, data), _ = encode(change("completed", 9, 9, 1, ""))
    assert decode("task:t", data).since == 8


BODY = change("pending", 2, 2, 7, "").body


@pytest.mark.parametrize(
    ("topic", "data"),
    [
        ("task:t", b""),
        ("task:t", b"7 " + BODY),
        ("task:t", BODY[:-1]),
        ("task:t", BODY + b"{}"),
        ("task:u", BODY),
        ("task:", BODY),
        ("task:t", BODY.replace(b'"pending"', b'"done"')),
        ("task:t", BODY.replace(b'"version":2', b'"version":"2"')),
        ("task:t", b'{"x":' + b"[" * 100_000),
        (f"user:{USER}", BODY),
        (f"user:{USER}", b""),
        (f"user:{USER}", b" " + BODY),
        (f"user:{USER}", b"-7 " + BODY),
        (f"user:{USER}", b"7.5 " + BODY),
        (f"user:{USER}", "²".encode() + b" " + BODY),
        (f"user:{USER}", b"7"),
        (f"user:{USER}", b"9" * 5000 + b" " + BODY),
    ],
)
def test_anything_else_is_refused_and_stops_nobody(topic: str, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(topic, data)


@given(st.sampled_from(["task:t", f"user:{USER}", ""]), st.binary(max_size=30))
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_so_is_noise(topic: str, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(topic, data)
