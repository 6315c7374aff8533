"""Holds the frames to the formats of the standards, whatever a user wrote into a prompt, and cursors to theirs."""

import datetime as dt
import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import TaskNotFound, Unavailable
from server.push import hub, wire
from server.tasks.snapshot import Snapshot, TaskChange, from_body

pytestmark = pytest.mark.pure

START = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


def change(prompt: str = "a fox", version: int = 4, status_version: int = 4) -> TaskChange:
    snapshot = Snapshot(
        task_id="t",
        status="processing",
        prompt=prompt,
        params=msgspec.Raw(b"{}"),
        message=prompt,
        attempt=1,
        version=version,
        status_version=status_version,
        created_at=START,
        updated_at=START,
    )
    return from_body(msgspec.json.encode(snapshot), 9)


def heard(stream: bytes) -> list[dict[str, str]]:
    """The events of a stream as a browser finds them (WHATWG HTML, 9.2.6)."""
    events: list[dict[str, str]] = []
    fields: dict[str, str] = {}
    for line in re.split(r"\r\n|\n|\r", stream.decode())[:-1]:  # what no line end follows has not come
        if not line:
            if "data" in fields:
                events.append(fields)
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value
    return events


def test_a_change_is_one_event_with_its_cursor() -> None:
    made = change()
    assert heard(wire.sse_change(made, "4")) == [{"id": "4", "event": "status", "data": made.body.decode()}]


@pytest.mark.parametrize("version", [4, 5, 2**31 - 1])
@pytest.mark.parametrize("prompt", ["", "é😀", "a" * 5_000])
def test_an_event_in_one_piece_is_the_chunk_of_it(version: int, prompt: str) -> None:
    made = change(prompt, version)
    item = hub.task_item(made)
    assert item.chunk() == wire.chunk(item.event) == wire.chunk(wire.sse_change(made, str(version)))
    item = hub.user_item(made)
    assert item.chunk() == wire.chunk(item.event) == wire.chunk(wire.sse_change(made, "s9"))


def test_without_a_cursor_there_is_no_id_line() -> None:
    assert heard(wire.sse_change(change(), None)) == [{"event": "status", "data": change().body.decode()}]


def test_mere_progress_has_its_own_name() -> None:
    made = change(version=5)
    assert wire.kind(made) == heard(wire.sse_change(made, "5"))[0]["event"] == "progress"


def test_frames_may_follow_one_another() -> None:
    stream = wire.sse_retry(1500) + wire.sse_change(change(), "4") + wire.HEARTBEAT + wire.sse_change(change(), "4")
    assert [event["event"] for event in heard(stream)] == ["status", "status"]


EVIL = ["a\nb", "a\rb", "a\r\n\r\nb", "\revent: completed\rdata: {}\r\r", ":x", "\u2028\u2029\x85\0", '"}\n\ndata: {"']


@given(st.sampled_from(EVIL) | st.text(st.sampled_from('\n\r: \u2028\0"\\}dataid'), max_size=30))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_no_text_ends_a_line_and_begins_an_event(text: str) -> None:
    (event,) = heard(wire.sse_change(change(text), "4"))
    assert set(event) == {"id", "event", "data"}
    assert msgspec.json.decode(event["data"])["prompt"] == text
    message = msgspec.json.decode(wire.ws_change(change(text), "4"))
    assert message["task"]["message"] == text
    assert set(message) == {"type", "task", "cursor"}


def test_what_is_said_besides_changes() -> None:
    assert wire.sse_retry(2500) == b"retry: 2500\n\n"
    assert wire.HEARTBEAT.startswith(b":")
    assert wire.HEARTBEAT.endswith(b"\n\n")
    sync = wire.Sync("s3", "s9", "replay", recovered=True)
    (event,) = heard(wire.sse_sync(sync, "s3"))
    assert (event["event"], event["id"]) == ("sync", "s3")
    assert msgspec.json.decode(event["data"]) == {"from": "s3", "to": "s9", "mode": "replay", "recovered": True}
    assert "id" not in heard(wire.sse_sync(sync))[0]
    (event,) = heard(wire.sse_bye("restarting"))
    assert (event["event"], msgspec.json.decode(event["data"])) == ("bye", {"reason": "restarting"})


def test_a_refusal_is_the_problem_itself() -> None:
    (event,) = heard(wire.sse_refused(Unavailable("line\r\nevent: x")))
    assert event["event"] == "refused"
    problem = msgspec.json.decode(event["data"])
    assert (problem["code"], problem["status"], problem["detail"]) == ("unavailable", 503, "line\r\nevent: x")
    assert heard(wire.sse_refused(TaskNotFound()))[0]["event"] == "refused", "never `error`: that is the browser's own"


def test_websocket_frames_are_json() -> None:
    made = change()
    assert msgspec.json.decode(wire.ws_change(made, "s9")) == {
        "type": "status",
        "task": msgspec.json.decode(made.body),
        "cursor": "s9",
    }
    assert msgspec.json.decode(wire.ws_message(wire.Refused(['"\n'], {}))) == {
        "type": "refused",
        "taskIds": ['"\n'],
        "problem": {},
    }


@pytest.mark.parametrize(("text", "version"), [("0", 0), ("1", 1), ("0012", 12), (str(2**31 - 1), 2**31 - 1)])
def test_versions(text: str, version: int) -> None:
    assert wire.parse_version(text) == version


MALFORMED = [
    "",
    " ",
    "-1",
    "+1",
    "1.0",
    "1e3",
    "9e99",
    "abc",
    "0x1",
    "1 ",
    "1\n",
    "1\r\nX: y",
    "1_0",
    "٣",
    "²",
    "9" * 5000,
]


@pytest.mark.parametrize("text", [*MALFORMED, str(2**31), "s1"])
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(wire.BadCursor):
        wire.parse_version(text)


@given(st.integers(0, wire.SEQ_MAX))
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_cursors_of_many_tasks_come_back(seq: int) -> None:
    assert wire.parse_owner_cursor(wire.owner_cursor(seq)) == seq


def test_nought_is_no_cursor_of_many_tasks() -> None:
    assert wire.parse_owner_cursor("0") == 0


@pytest.mark.parametrize(
    "text", [*MALFORMED, "1", "s", "s-1", "s1 ", "s1\n", "S1", "s٣", f"s{2**53 + 1}", "s" + "9" * 5000]
)
def test_what_is_no_cursor_of_many_tasks(text: str) -> None:
    with pytest.raises(wire.BadCursor):
        wire.parse_owner_cursor(text)
