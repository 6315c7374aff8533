"""The stream of server-sent events as the contract in the README has it, through a real web process."""

import asyncio

import httpx
import pytest

from tests.conftest import Deploy
from tests.deployment import Deployment
from tests.playing import Play
from tests.sse import Event, changes, check_followed, stream


# Both ways out: by hand-over of the connection, and as under any ASGI server.
@pytest.fixture(params=["handed over", "portable"])
async def here(request: pytest.FixtureRequest, deploy: Deploy) -> Deployment:
    return await deploy(dispatchers=0, generator=False, portable=request.param == "portable")


@pytest.fixture
async def play(here: Deployment) -> Play:
    return await Play.of(here)


async def first(
    client: httpx.AsyncClient, query: str, count: int, headers: dict[str, str] | None = None
) -> list[Event]:
    """The first `count` events that carry data."""
    seen: list[Event] = []
    async with stream(client, query, headers) as events:
        async for event in events:
            if event.data is not None:
                seen.append(event)
            if len(seen) == count:
                break
    return seen


async def test_the_head_of_the_response(here: Deployment, play: Play, request: pytest.FixtureRequest) -> None:
    task_id = await play.create()
    async with here.client() as client, client.stream("GET", f"/api/generate/events?taskId={task_id}") as response:
        head = response.headers
        assert head["content-type"] == "text/event-stream; charset=utf-8"
        assert head["cache-control"] == "no-store, no-transform"
        assert head["x-accel-buffering"] == "no"
        assert head["x-content-type-options"] == "nosniff"
        assert "content-length" not in head
        # What a new uvicorn might break in silence: that the connection is handed over at all.
        handed_over = "handed over" in request.node.name
        assert (head.get("connection") == "close") == handed_over
        assert "content-encoding" not in head
        data = b""
        async for chunk in response.aiter_bytes():
            data += chunk
            if b"event: status" in data and data.endswith(b"\n\n"):
                break
    frames = data.split(b"\n\n")
    assert frames[0].startswith(b"retry: ")
    assert frames[1].startswith(b"event: sync\ndata: {")
    assert frames[2].startswith(b"id: 1\nevent: status\ndata: {")
    assert b"\r" not in data


async def test_where_a_stream_begins(here: Deployment, play: Play) -> None:
    task_id = await play.create()
    for progress in (10, 20, 30):
        await play.report(task_id, progress)  # versions 2 (the status), 3, 4
    async with here.client() as client:
        sync, now = await first(client, f"taskId={task_id}", 2)
        assert sync.data == {"from": 0, "to": 4, "mode": "snapshot", "recovered": False}
        assert (now.id, now.event, now.data["version"], now.data["progress"]) == ("4", "progress", 4, 30)

        sync, missed, newest = await first(client, f"taskId={task_id}&after=1", 3)
        assert sync.data == {"from": 1, "to": 4, "mode": "replay", "recovered": True}
        assert [(e.event, e.id) for e in (missed, newest)] == [("status", "2"), ("progress", "4")]

        (sync,) = await first(client, f"taskId={task_id}&after=4", 1)
        assert sync.data == {"from": 4, "to": 4, "mode": "live", "recovered": True}

        # What the browser remembers beats what the page wrote into the URL.
        (sync,) = await first(client, f"taskId={task_id}&after=1", 1, {"Last-Event-ID": "4"})
        assert sync.data["mode"] == "live"

        # A cursor of the future is none of ours: the present, and then all that comes.
        async with stream(client, f"taskId={task_id}&after=99") as events:
            while (sync := await anext(events)).event != "sync":
                pass
            assert (sync.data["mode"], sync.data["recovered"]) == ("snapshot", False)
            assert (await anext(events)).id == "4"
            await play.finish(task_id)
            assert [e.data["status"] async for e in events] == ["completed"]


@pytest.mark.parametrize("cursor", ["abc", "-1", "9e99", "1" * 20, "1.5", "s1", "१"])
async def test_malformed_cursors(here: Deployment, play: Play, cursor: str) -> None:
    task_id = await play.create()
    async with here.client() as client:
        answer = await client.get("/api/generate/events", params={"taskId": task_id, "after": cursor})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor")
        # The browser's own header cannot be mended by the page: the present is sent.
        if cursor.isascii():
            sync, now = await first(client, f"taskId={task_id}", 2, {"Last-Event-ID": cursor})
            assert sync.data["mode"] == "snapshot"
            assert now.data["version"] == 1


async def test_the_end(here: Deployment, play: Play) -> None:
    task_id = await play.create()
    async with here.client() as client:
        following = asyncio.create_task(changes(client, f"taskId={task_id}"))
        await play.report(task_id, 40, message="half way", step=2, steps=5, preview="https://example.com/p.jpg")
        await play.finish(task_id)
        seen = await following
        check_followed(seen)
        end = int(seen[-1].data["version"])
        for cursor in (end, end + 7):
            for headers, query in (({}, f"&after={cursor}"), ({"Last-Event-ID": str(cursor)}, "")):
                answer = await client.get(f"/api/generate/events?taskId={task_id}{query}", headers=headers)
                assert (answer.status_code, answer.content) == (204, b"")
        # Whoever comes without a cursor is told how it ended.
        late = await changes(client, f"taskId={task_id}")
        assert [e.data["status"] for e in late] == ["completed"]


async def test_what_cannot_be_followed(here: Deployment, play: Play) -> None:
    task_id = await play.create()
    async with here.client() as client:
        for query, code in (
            ("taskId=nope-nope", "task_not_found"),
            ("taskId=*", "task_not_found"),
            ("taskId=task:*", "task_not_found"),
            ("taskId=a%0d%0aPUBLISH", "task_not_found"),
            (f"taskId={task_id}&taskId=nope-nope", "task_not_found"),
            (f"taskid={task_id}", "invalid_parameter"),
            ("&".join(f"taskId=t{n}" for n in range(101)), "invalid_parameter"),
        ):
            answer = await client.get(f"/api/generate/events?{query}")
            assert answer.headers["content-type"] == "application/problem+json", query
            assert answer.json()["code"] == code, query


async def test_all_of_mine(here: Deployment, play: Play) -> None:
    """A stream of many tasks never ends; new tasks appear in it; its opaque cursor resumes it without a gap."""
    one = await play.create("one")
    async with here.client() as client:
        async with stream(client, "") as events:
            seen = [await anext(events) for _ in range(2)]
            two = await play.create("two")
            await play.report(one, 30)
            await play.finish(one)
            while not (seen[-1].is_change and seen[-1].data["status"] == "completed"):
                seen.append(await anext(events))
        told = [(e.data["taskId"], e.data["version"]) for e in seen if e.is_change]
        assert told[0] == (one, 1)
        assert (two, 1) in told
        assert len(set(told)) == len(told)
        cursor = seen[-1].id
        assert cursor is not None
        await play.report(two, 10)
        await play.finish(two)
        async with stream(client, f"after={cursor}") as events:
            sync = await anext(events)
            while sync.event != "sync":
                sync = await anext(events)
            assert (sync.data["mode"], sync.data["recovered"], sync.data["from"]) == ("replay", True, cursor)
            rest = [await anext(events) for _ in range(2)]
        assert [(e.data["taskId"], e.data["status"]) for e in rest] == [(two, "processing"), (two, "completed")]
        assert len({e.id for e in rest}) == 2


async def test_several_named_tasks_end_together(here: Deployment, play: Play) -> None:
    one, two, other = [await play.create(name) for name in ("one", "two", "other")]
    async with here.client() as client:
        following = asyncio.create_task(changes(client, f"taskId={one}&taskId={two}"))
        await play.finish(two)
        await play.finish(other)
        await play.report(one, 50)
        await play.finish(one)
        seen = await following
        assert {e.data["taskId"] for e in seen} == {one, two}
        ends = {e.data["taskId"]: e.data["status"] for e in seen}
        assert ends == {one: "completed", two: "completed"}
        answer = await client.get(
            f"/api/generate/events?taskId={one}&taskId={two}", headers={"Last-Event-ID": str(seen[-1].id)}
        )
        assert answer.status_code == 204


async def test_hostile_text_stays_inside_its_event(here: Deployment, play: Play) -> None:
    hostile = 'a\r\revent: status\rdata: {"status":"completed"}\n\nid: 9\n:\u2028<script>'
    task_id = await play.create(hostile)
    await play.report(task_id, 5, message=hostile[:500])
    async with here.client() as client:
        following = asyncio.create_task(changes(client, f"taskId={task_id}"))
        await play.finish(task_id)
        seen = await following
    check_followed(seen)
    assert all(e.data["prompt"] == hostile for e in seen)
    assert seen[0].data["message"] == hostile
